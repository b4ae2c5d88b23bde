"""The listener on AWS Lambda: one archive, five functions.

| function | invoked by | does |
|---|---|---|
| `receiver` | HTTP API or Function URL | verifies, validates, answers; hands asynchronous runs to a queue |
| `worker` | queue of a privilege group | claims a run, runs its handler in a child process |
| `synchronous` | `receiver` | runs a synchronous handler that has privileges |
| `reporter` | queue of reports (the outbox) | tells Port, again and again until Port has taken it |
| `dead_letters` | dead-letter queues | ends runs that nobody could run |

Modules here import the standard library and this package only: boto3 would be most of a cold start.
"""
