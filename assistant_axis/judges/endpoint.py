"""A model behind any OpenAI-compatible endpoint: bounded in time, in concurrency and, by an estimate first, in money."""

import asyncio
import json
import os
from collections.abc import Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from assistant_axis.errors import JudgeError, MissingExtraError, SettingError

if TYPE_CHECKING:
    from assistant_axis.models.chat import Conversation

KEY = "OPENAI_API_KEY"
BASE_URL = "OPENAI_BASE_URL"
CHARACTERS_A_TOKEN = 4.0  # of English text, roughly; an estimate needs no tokenizer


@dataclass(frozen=True)
class SpendEstimate:
    """What scoring will ask for.

    Attributes:
        requests: calls, if none has to be repeated.
        prompt_tokens: about so many tokens in.
        completion_tokens: at most so many tokens out.
        price: at most, in the currency of the prices given; `None` where none were given.
    """

    requests: int
    prompt_tokens: int
    completion_tokens: int
    price: float | None

    def __str__(self) -> str:
        said = f"{self.requests:,} requests, about {self.prompt_tokens:,} tokens in, at most {self.completion_tokens:,} out"
        return said if self.price is None else f"{said}, at most {self.price:,.2f}"


@dataclass(frozen=True)
class Reply:
    """What came back for one conversation.

    Attributes:
        text: of the reply, or what went wrong.
        failure: empty, or `"refused"` (by the endpoint), `"unparsed"` (no message), `"error"`, `"time"`.
    """

    text: str
    failure: str = ""


class Endpoint:
    """Asks a model behind an OpenAI-compatible endpoint; the key comes from `OPENAI_API_KEY`, the address from
    `OPENAI_BASE_URL` unless it is given.

    Rate limits, server errors, broken connections and slow answers are retried with growing, random pauses; replies that
    cannot be read are asked for once more. What still has no reply when attempts or time are used up comes back as a
    failure, never as an exception, so that one bad reply does not cost the others.

    Args:
        model: its name at the endpoint.
        base_url: of the endpoint.
        concurrency: requests under way at a time.
        timeout: seconds a single request may take.
        time_limit: seconds that one call of `ask` may take altogether.
        attempts: tries for each conversation.
        max_tokens: room for the reply.
        prices: (in, out) for a million tokens, for the estimate.

    Raises:
        MissingExtraError: the `openai` package is not installed.
        JudgeError: no key in the environment.
        SettingError: a limit that is not positive.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str | None = None,
        concurrency: int = 8,
        timeout: float = 60.0,
        time_limit: float = 3600.0,
        attempts: int = 6,
        max_tokens: int = 200,
        prices: tuple[float, float] | None = None,
    ) -> None:
        require_api(concurrency=concurrency, timeout=timeout, time_limit=time_limit, attempts=attempts)
        self.model, self.base_url = model, base_url or os.environ.get(BASE_URL)
        self.concurrency, self.timeout, self.time_limit = concurrency, timeout, time_limit
        self.attempts, self.max_tokens, self.prices = attempts, max_tokens, prices

    def estimate(self, conversations: "Sequence[Conversation]") -> SpendEstimate:
        """What asking these will cost; nothing is sent."""
        return self.estimate_of(len(conversations), sum(len(m["content"]) for c in conversations for m in c))

    def estimate_of(self, requests: int, characters: int) -> SpendEstimate:
        """The same from a number of requests and the characters they hold."""
        into, out = int(characters / CHARACTERS_A_TOKEN), requests * self.max_tokens
        price = None if self.prices is None else (into * self.prices[0] + out * self.prices[1]) / 1e6
        return SpendEstimate(requests, into, out, price)

    def ask(self, conversations: "Sequence[Conversation]", readable: Callable[[str], bool] = bool) -> list[Reply]:
        """One reply for each conversation, in order, in `time_limit` seconds at the longest.

        Args:
            conversations: what is sent, at temperature 0.
            readable: whether a text can be used; one that cannot is asked for once more, and returned if it stays so.

        Raises:
            JudgeError: the endpoint refuses the key, the model's name or the form of the request.
        """
        return _finish(self._all(conversations, readable))

    async def _all(self, conversations: "Sequence[Conversation]", readable: Callable[[str], bool]) -> list[Reply]:
        from openai import AsyncOpenAI

        gate = asyncio.Semaphore(self.concurrency)
        client = AsyncOpenAI(base_url=self.base_url, timeout=self.timeout, max_retries=0)
        async with client:
            tasks = [asyncio.create_task(self._one(client, gate, c, readable)) for c in conversations]
            if not tasks:
                return []
            try:
                done, late = await asyncio.wait(tasks, timeout=self.time_limit, return_when=asyncio.FIRST_EXCEPTION)
                broken = next((e for t in done if (e := t.exception()) is not None), None)
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
            if broken is not None:
                raise broken
        said = f"not answered within {self.time_limit:g} s"
        return [Reply(said, "time") if t in late else t.result() for t in tasks]

    async def _one(
        self, client: Any, gate: asyncio.Semaphore, chat: "Conversation", readable: Callable[[str], bool]
    ) -> Reply:
        import openai
        import tenacity

        passing = (
            openai.RateLimitError,
            openai.APIConnectionError,
            openai.InternalServerError,
            TimeoutError,
            json.JSONDecodeError,  # a broken body
        )
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(self.attempts),
            wait=tenacity.wait_random_exponential(multiplier=0.5, max=30),
            retry=tenacity.retry_if_exception_type(passing),
            reraise=True,
        )
        unread: Reply | None = None
        try:
            async for attempt in retrying:
                with attempt:
                    async with gate:
                        # The client's own timeout is for each read; a server that drips would outlast it.
                        said = await asyncio.wait_for(self._ask(client, chat), self.timeout)
                    useless = said.failure == "unparsed" or (not said.failure and not readable(said.text))
                    if useless and unread is None and self.attempts > 1:
                        unread = said
                        raise TimeoutError("no use")  # once more, as if it had not answered
                    return said
        except passing as e:
            return unread or Reply(f"{type(e).__name__}: {e}", "error")
        except openai.APIResponseValidationError as e:
            return Reply(str(e), "error")
        except openai.APIStatusError as e:
            raise JudgeError(
                f"The endpoint answered {e.status_code} ({e.message}). Check {KEY}, {BASE_URL} and the model's name "
                f"{self.model!r}."
            ) from e
        raise AssertionError("unreachable")

    async def _ask(self, client: Any, chat: "Conversation") -> Reply:
        reply = await client.chat.completions.create(
            model=self.model, messages=list(chat), temperature=0, max_tokens=self.max_tokens
        )
        choices = getattr(reply, "choices", None)
        message = choices[0].message if choices else None
        if not choices or message is None:
            return Reply(f"no message in the reply: {reply!r:.200}", "unparsed")
        if getattr(message, "refusal", None) or choices[0].finish_reason == "content_filter":
            return Reply(message.refusal or "content filter", "refused")
        return Reply(message.content or "")


def require_api(**limits: float) -> None:
    """Fail before anything is loaded or sent, if the key, the package or a sensible limit is missing."""
    wrong = {k: v for k, v in limits.items() if not v > 0}
    if wrong:
        raise SettingError(f"{', '.join(f'{k}={v}' for k, v in wrong.items())}: must be above 0.")
    try:
        import openai  # noqa: F401
    except ImportError as e:
        raise MissingExtraError("openai", "api", "A judge behind an API") from e
    if not os.environ.get(KEY):
        raise JudgeError(
            f"The environment has no {KEY}, which the API judge needs. Set it (any text for a server of your own that asks "
            f"for none), and {BASE_URL} for another endpoint; or use the likelihood judge, which needs neither."
        )


def _finish(work: Coroutine[Any, Any, list[Reply]]) -> list[Reply]:
    """Run to the end, in a thread of its own where an event loop is running already (a notebook)."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return asyncio.run(work)
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result()
