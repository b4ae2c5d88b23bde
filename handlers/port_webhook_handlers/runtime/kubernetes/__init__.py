"""The runtime in a cluster, whose API server is the durable queue.

| process | what it does | what it may do at the API server |
|---|---|---|
| `listener` | verifies requests and stores accepted runs; runs synchronous handlers | create Secrets in the runs' namespace |
| `dispatcher` | turns stored runs into Jobs, reports to Port, cleans up | Secrets, Jobs and Pods in the runs' namespace |
| `job` | executes one run | nothing |
"""
