"""The execution agent: takes invocations from Port without an inbound endpoint.

One core (claim → verify → deliver → report → acknowledge), two sources (a Kafka topic, or polling of Port's API)
and two sinks (HTTP to a URL of the network, or straight into a listener of the same process). A message is
acknowledged only after a durable outcome: a 2xx of the URL, a claim in the ledger, or a failure that Port has taken.
"""
