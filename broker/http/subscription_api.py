"""`/v1/stream/__ds/…`: subscriptions over one partition and its waker.

The decisions are in `subscription_requests` and `subscription_answers`; here is the order of the steps.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from broker import limits
from broker.core.entry import Place, SubscriptionOptions
from broker.core.outcome import Result
from broker.core.state import Subscription
from broker.core.subscription import PULL_WAKE, WEBHOOK, pending_tails
from broker.http import subscription_answers as answers, subscription_requests as requests
from broker.http.bodies import Bodies
from broker.http.problems import BadRequest
from broker.http.request import Receive, Request
from broker.http.response import Response
from broker.http.subscription_requests import Target
from broker.partitions import Partitioned
from broker.settings import Settings
from broker.signing import InvalidToken, Signing
from broker.waker import Waker
from broker.webhooks import UrlRejected, Webhooks, destination
from consumer.wire import Code

PREFIX: Final = b"/v1/stream/__ds/"


class SubscriptionApi:
    """See the module."""

    def __init__(
        self,
        partition: Partitioned,
        settings: Settings,
        bodies: Bodies,
        waker: Waker,
        webhooks: Webhooks,
        signing: Signing,
    ) -> None:
        self._partition = partition
        self._settings = settings
        self._bodies = bodies
        self._waker = waker
        self._webhooks = webhooks
        self._signing = signing

    async def respond(self, request: Request, receive: Receive) -> Response:
        """One request. Raises BadRequest, BrokerError, ClientLeft."""
        target = requests.target_of(request.path)
        requests.require_method(request.method, target)
        if not target.subscription_id:
            answer = answers.keys_answer(self._signing.jwks)
            return answer if request.method == "GET" else Response(answer.status, answer.headers)
        body = await self._bodies.read(request.headers, receive)
        # The client may leave from here on: what is proposed is done all the same.
        if target.part == "claim":
            return await self._claim(request, target, body)
        if target.part == "streams":
            return await self._link(request, target, body)
        if target.part:
            return await self._report(request, target, body)
        if request.method == "PUT":
            return await self._create(request, target, body)
        if request.method == "DELETE":
            await self._partition.propose(requests.delete_of(request, target))
            return Response(204, [])  # whether there was one or not (PROTOCOL.md 6.3)
        await self._waker.settle(target.subscription_id)
        return await self._answer(request, self._known(target), 200)

    # -- one subscription ------------------------------------------------------------------------------------------

    async def _create(self, request: Request, target: Target, body: bytes) -> Response:
        wanted = requests.wanted_of(body)
        base_url = requests.base_url_of(request, self._settings.public_url)
        await self._require_possible(target, wanted)
        tails = await self._tails([path for path, _, _ in wanted.streams])
        entry = requests.create_of(request, target, wanted, tails, base_url)
        outcome = await self._partition.propose(entry)
        subscription = outcome.subscription
        if outcome.result is Result.REFUSED or subscription is None:
            return answers.refusal(outcome)
        if not subscription.linked:  # just created, or whoever created it did not get this far
            await self._waker.link_existing(subscription)
        subscription = self._partition.subscriptions.get(target.subscription_id, subscription)
        return await self._answer(request, subscription, 201 if outcome.result is Result.CREATED else 200)

    async def _require_possible(self, target: Target, wanted: SubscriptionOptions) -> None:
        """What has to be so before there is a new subscription. Raises BadRequest."""
        if wanted.delivery == WEBHOOK:
            self._require_webhook(wanted.webhook_url)
        if target.subscription_id in self._partition.subscriptions:
            return
        if len(self._partition.subscriptions) >= limits.SUBSCRIPTIONS_MAX:
            raise BadRequest(Code.TOO_MANY_SUBSCRIPTIONS, f"at most {limits.SUBSCRIPTIONS_MAX}")
        if wanted.delivery == WEBHOOK:
            try:
                await self._webhooks.require_allowed(wanted.webhook_url)
            except UrlRejected as error:
                raise BadRequest(Code.WEBHOOK_URL_REJECTED, str(error)) from None
        if wanted.pattern:
            room = limits.LINKS_MAX - len(wanted.streams)
            matching = await self._waker.matching(wanted.pattern, wanted.wake_stream, room + 1)
            if len(matching) > room:
                raise BadRequest(Code.TOO_MANY_LINKS, f"the pattern covers more than {room} streams")

    def _require_webhook(self, url: str) -> None:
        try:
            destination(url, local=self._settings.is_local)
        except UrlRejected as error:
            raise BadRequest(Code.WEBHOOK_URL_REJECTED, str(error)) from None

    async def _answer(self, request: Request, subscription: Subscription, status: int) -> Response:
        base_url = requests.base_url_of(request, self._settings.public_url)
        return answers.subscription_answer(
            subscription,
            await self._waker.streams(subscription),
            answers.signing_of(self._signing.kid, base_url),
            failing=self._waker.is_failing(subscription),
            status=status,
        )

    async def _link(self, request: Request, target: Target, body: bytes) -> Response:
        known = self._known(target)
        tails: Sequence[Place] = ()
        if request.method == "POST":
            tails = await self._tails(requests.added_of(body, known.wake_stream))
        outcome = await self._partition.propose(requests.link_of(request, target, tails))
        return answers.refusal(outcome) if outcome.result is Result.REFUSED else Response(204, [])

    # -- wakes -----------------------------------------------------------------------------------------------------

    async def _claim(self, request: Request, target: Target, body: bytes) -> Response:
        worker = requests.worker_of(body)
        await self._waker.settle(target.subscription_id)
        known = self._known(target, PULL_WAKE)
        tails = pending_tails(known, await self._waker.streams(known))
        outcome = await self._partition.propose(requests.claim_of(request, target, worker, tails))
        subscription = outcome.subscription
        if outcome.result is Result.REFUSED or subscription is None:
            return answers.refusal(outcome)
        streams = await self._waker.streams(subscription)
        return answers.claim_answer(subscription, streams, self._waker.token(subscription))

    async def _report(self, request: Request, target: Target, body: bytes) -> Response:
        """A callback, an ack or a release: nothing moves unless token, generation and wake are the current ones."""
        known = self._known(target, WEBHOOK if target.part == "callback" else PULL_WAKE)
        generation = self._generation_of(request, known)
        await self._waker.settle(target.subscription_id)
        report = requests.report_of(target, body)
        if generation != report.generation:
            return answers.refuse(Code.FENCED, "the token is of another generation")
        acks: Sequence[Place] | None = ()
        if report.acks and known.wake is not None and known.wake.wake_id == report.wake_id:
            acks = requests.acks_of(report, await self._waker.streams(known))
        if acks is None:  # that it is fenced would come first
            return answers.refuse(Code.INVALID_OFFSET, "no offset of a stream of this subscription")
        outcome = await self._partition.propose(requests.ack_of(request, known, target, report, acks))
        subscription = outcome.subscription
        if outcome.result is Result.REFUSED or subscription is None:
            return answers.refusal(outcome)
        return answers.report_answer(target, subscription, await self._waker.streams(subscription))

    def _generation_of(self, request: Request, known: Subscription) -> int:
        """The generation that the request has a token for. Raises BadRequest."""
        try:
            token = self._signing.read_token(requests.bearer_of(request))
        except InvalidToken:
            raise requests.token_refused(Code.TOKEN_INVALID) from None
        if (token.subscription_id, token.birth) != (known.subscription_id, known.birth):
            raise requests.token_refused(Code.TOKEN_INVALID)
        if token.expires_ms <= self._partition.now_ms():
            raise requests.token_refused(Code.TOKEN_EXPIRED)
        return token.generation

    # -- what is there ---------------------------------------------------------------------------------------------

    def _known(self, target: Target, delivery: str = "") -> Subscription:
        """The subscription of the URL. Raises BadRequest when there is none, or it is delivered in another way."""
        subscription = self._partition.subscriptions.get(target.subscription_id)
        if subscription is None:
            raise BadRequest(Code.SUBSCRIPTION_NOT_FOUND)
        if delivery and subscription.delivery != delivery:
            raise BadRequest(Code.INVALID_REQUEST, f"only a {delivery} subscription has this")
        return subscription

    async def _tails(self, paths: Sequence[str]) -> list[Place]:
        """Where these streams stand; at nothing when there is none yet."""
        tails: list[Place] = []
        for path in paths:
            stream = await self._partition.stream(path)
            is_there = stream is not None and not stream.deleted
            tails.append((path, stream.incarnation, stream.tail) if stream is not None and is_there else (path, 0, 0))
        return tails
