"""That the Kafka of the tests is one, and can be hurt as the tests want to hurt it."""

import asyncio

import pytest
from aiokafka import AIOKafkaProducer
from aiokafka.admin import AIOKafkaAdminClient, NewTopic

from tests.kafka.cluster import KafkaCluster


async def make_topic(cluster: KafkaCluster, name: str) -> None:
    admin = AIOKafkaAdminClient(bootstrap_servers=cluster.bootstrap)
    await admin.start()
    try:
        made = await admin.create_topics([NewTopic(name, 1, len(cluster.nodes))])
        assert [error for _, error, *_ in made.topic_errors] == [0]
    finally:
        await admin.close()


@pytest.mark.timeout(180)  # it may be the first to need three nodes, and starts one of them again
async def test_three_nodes_take_records_without_one_of_them_and_after_a_pause(three_nodes: KafkaCluster) -> None:
    await make_topic(three_nodes, "one")
    producer = AIOKafkaProducer(bootstrap_servers=three_nodes.bootstrap, acks="all", enable_idempotence=False)
    await producer.start()
    try:
        offsets = [(await producer.send_and_wait("one", b"whole", partition=0)).offset]
        three_nodes.kill(1)
        offsets.append((await producer.send_and_wait("one", b"one is dead", partition=0)).offset)
        await asyncio.to_thread(three_nodes.start, 1)
        with three_nodes.paused(2):
            pass
        offsets.append((await producer.send_and_wait("one", b"one is back", partition=0)).offset)
    finally:
        await producer.stop()
    assert offsets == [0, 1, 2]
