"""What everything that talks to Kafka shares: connecting, waiting for brokers, naming what they refuse.

`client` has connections, errors and outages; `reader` a consumer that waits; `membership` a consumer's place in its
group; `backlog` a whole topic without a group; `publisher` records in bulk. Only these, `source/kafka*.py`,
`sink/kafka*.py` and `alerts.py` know kafka-python.
"""
