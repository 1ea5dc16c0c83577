"""A judge behind one OpenAI-compatible endpoint: every prompt and reply kept, nothing asked twice.

The endpoint may be a service or a local server; the key comes from the environment. A judged run is
a file of JSON lines, one per prompt: it is resumed by what is in it, and scored again without the
judge. The cost is known before the first request, as an upper bound from the lengths.
"""

from __future__ import annotations

import json
import os
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

from tqdm import tqdm

from lvlm_interp.errors import LvlmInterpError, UsageError

__all__ = ["Judge", "JudgeError", "Judged", "Prompt"]

_CHARACTERS_PER_TOKEN = 3.0
"""Fewer than English has (about four), so that the cost is an upper bound."""

_RETRIED = frozenset({408, 409, 425, 429, 500, 502, 503, 504})

Complete = Callable[[Sequence[Mapping[str, str]]], str]
"""Takes messages, gives the reply: what stands in for an endpoint."""


class JudgeError(LvlmInterpError):
    """The judge cannot be reached, refuses, or would cost more than was allowed."""


@dataclass(frozen=True)
class Prompt:
    """What is asked about one answer.

    Attributes:
        id: Of the answer.
        user: The words.
        system: The system's words; empty sends none.
    """

    id: str
    user: str
    system: str = ""

    @property
    def messages(self) -> list[dict[str, str]]:
        """As the endpoint takes them."""
        first = [{"role": "system", "content": self.system}] if self.system else []
        return [*first, {"role": "user", "content": self.user}]


@dataclass(frozen=True)
class Judged:
    """One reply of the judge.

    Attributes:
        id: Of the answer.
        reply: The judge's words; None where it gave none.
        model: The judge.
        error: Why there is no reply.
    """

    id: str
    reply: str | None
    model: str
    error: str | None = None


@dataclass(frozen=True)
class Judge:
    """An endpoint and how it is asked.

    Attributes:
        url: Up to `/v1`; `/chat/completions` is put behind it.
        model: Name of the judge.
        key_variable: Environment variable that holds the key; not needed by local servers.
        temperature: Of its sampling.
        max_tokens: Of its reply.
        price: Dollars per million tokens, of the prompt and of the reply; None is not known.
        timeout: Seconds for one reply.
        tries: Requests per prompt.
        wait: Seconds before the second try; doubled each time.
        complete: Takes the endpoint's place, such as a local model's generation.
    """

    url: str
    model: str
    key_variable: str = "OPENAI_API_KEY"
    temperature: float = 0.0
    max_tokens: int = 512
    price: tuple[float, float] | None = None
    timeout: float = 60.0
    tries: int = 5
    wait: float = 1.0
    complete: Complete | None = field(default=None, compare=False)

    def cost(self, prompts: Sequence[Prompt]) -> float | None:
        """Upper bound in dollars of asking all; None where the price is not known."""
        if self.price is None:
            return None
        characters = sum(len(each.user) + len(each.system) for each in prompts)
        asked = characters / _CHARACTERS_PER_TOKEN
        said = len(prompts) * self.max_tokens
        return (asked * self.price[0] + said * self.price[1]) / 1e6

    def ask(
        self,
        prompts: Sequence[Prompt],
        out: str | os.PathLike[str],
        *,
        max_cost: float | None = None,
        progress: bool = True,
    ) -> list[Judged]:
        """Every prompt's reply; those that `out` holds are not asked again.

        Args:
            prompts: With unique ids.
            out: JSON lines of prompt, reply, model and settings; appended to after each reply.
            max_cost: Dollars; refuses before the first request where the bound is above it.
            progress: Show a bar.

        Returns:
            In the order of the prompts. A prompt whose tries all failed has no reply and an error;
            it is asked again the next time.

        Raises:
            JudgeError: The bound is above `max_cost`, or the endpoint refuses for good (a wrong
                key, no such model): what was judged until then is kept.
            UsageError: A cost is capped and no price is known.
        """
        path = Path(out)
        known = self._known(path)
        waiting = [each for each in prompts if self._hash(each) not in known]
        self._check_cost(waiting, max_cost)
        errors: dict[str, str] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a", encoding="utf-8") as file:
            for prompt in tqdm(waiting, desc="judge", disable=not progress):
                reply, error = self._try(prompt)
                if reply is None:
                    errors[prompt.id] = error or "no reply"
                    continue
                known[self._hash(prompt)] = reply
                row = {"hash": self._hash(prompt), "id": prompt.id, "prompt": prompt.messages,
                       "reply": reply, **self._settings()}  # fmt: skip
                file.write(json.dumps(row, ensure_ascii=False) + "\n")
                file.flush()
        return [
            Judged(each.id, known.get(self._hash(each)), self.model, errors.get(each.id))
            for each in prompts
        ]

    def _check_cost(self, waiting: Sequence[Prompt], max_cost: float | None) -> None:
        if max_cost is None:
            return
        cost = self.cost(waiting)
        if cost is None:
            raise UsageError("a cost can only be capped where the judge's price is given")
        if cost > max_cost:
            raise JudgeError(
                f"asking {len(waiting)} prompts may cost {cost:.2f} dollars, more than the "
                f"{max_cost:.2f} that are allowed; nothing was asked."
            )

    def _settings(self) -> dict[str, Any]:
        return {"model": self.model, "temperature": self.temperature, "max_tokens": self.max_tokens}

    def _hash(self, prompt: Prompt) -> str:
        text = json.dumps([prompt.id, prompt.messages, self._settings()], sort_keys=True)
        return sha256(text.encode()).hexdigest()

    def _known(self, path: Path) -> dict[str, str]:
        """Replies by hash; a line that a killed run left half is passed over and cut off."""
        if not path.is_file():
            return {}
        raw = path.read_bytes()
        whole = raw[: raw.rfind(b"\n") + 1]
        if whole != raw:
            path.write_bytes(whole)
        found = {}
        for line in whole.decode("utf-8", errors="replace").split("\n"):
            try:
                row = json.loads(line)
                found[row["hash"]] = row["reply"]
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def _try(self, prompt: Prompt) -> tuple[str | None, str | None]:
        wait, error = self.wait, None
        for turn in range(self.tries):
            if turn:
                time.sleep(wait)
                wait *= 2
            try:
                reply = (self.complete or self._request)(prompt.messages)
                if isinstance(reply, str):
                    return reply, None
                error = "the reply is no text"
            except _Passing as failure:
                error = str(failure)
        return None, error

    def _request(self, messages: Sequence[Mapping[str, str]]) -> str:
        body = {**self._settings(), "messages": list(messages)}
        headers = {"Content-Type": "application/json"}
        key = os.environ.get(self.key_variable)
        if key:
            headers["Authorization"] = f"Bearer {key}"
        if not self.url.startswith(("http://", "https://")):
            raise JudgeError(
                f"the judge's address must begin with http:// or https://: {self.url!r}"
            )
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions", json.dumps(body).encode(), headers
        )
        try:
            with urllib.request.urlopen(request, timeout=self.timeout) as response:
                content = json.loads(response.read())
            return content["choices"][0]["message"]["content"]
        except urllib.error.HTTPError as error:
            with error:
                what = f"the judge answered {error.code} {error.reason}"
            if error.code in _RETRIED:
                raise _Passing(what) from error
            raise JudgeError(
                f"{what}: check the address, the model {self.model!r} and the key in "
                f"{self.key_variable}."
            ) from error
        except (OSError, TimeoutError) as error:
            raise _Passing(f"the judge at {self.url} cannot be reached ({error})") from error
        except (ValueError, KeyError, IndexError, TypeError) as error:
            raise _Passing(f"the judge's answer is not of the form expected ({error!r})") from error


class _Passing(Exception):
    """A fault that another try may not meet."""
