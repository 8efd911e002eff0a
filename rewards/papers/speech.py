"""Speech: whether what was asked for is what is said, and whether it is said in the voice that was asked for."""

from __future__ import annotations

import base64
import io
import math
import wave
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from typing import Any

from mmrl.errors import RewardError
from mmrl.rewards import answers
from mmrl.rewards.distances import LONGEST, edits, words
from mmrl.rewards.http import Server, ServerError
from mmrl.rewards.models.judge import chat_url
from mmrl.rewards.registry import resolve, reward

HEAR = "Write down what is said, word for word, and nothing else. Write nothing where nothing is said."


def error_rate(heard: str, wanted: str, *, characters: bool = False) -> float:
    """Edits / length of what was wanted, 0 for the same and 1 for none of it; above 1 for too much.

    Words without case and punctuation; what is written without spaces, as Chinese is, counts by character in any case.
    characters  of all texts: a character error rate
    """
    said, right = (words(text) for text in (heard, wanted))
    if characters:
        said, right = list("".join(said)), list("".join(right))
    return edits(said[:LONGEST], right[:LONGEST]) / max(1, len(right[:LONGEST]))


def wav(sound: Any) -> bytes:
    """A sound as a WAV file of 16 bits."""
    import numpy as np

    samples = np.clip(np.asarray(sound.samples, dtype="float64"), -1, 1)
    held = io.BytesIO()
    with wave.open(held, "wb") as file:
        file.setnchannels(len(samples))
        file.setsampwidth(2)
        file.setframerate(int(sound.rate))
        file.writeframes((samples.T * 32767).round().astype("<i2").tobytes())
    return held.getvalue()


@lru_cache(maxsize=8)
def _named(name: str) -> Any:
    return resolve(name).function


def heard_by(server: Server, model: str, sound: Any) -> str | ServerError:
    """What a chat model that hears writes down, or why it did not."""
    data = {"type": "input_audio", "input_audio": {"data": base64.b64encode(wav(sound)).decode(), "format": "wav"}}
    body = {
        "model": model, "temperature": 0,
        "messages": [{"role": "user", "content": [data, {"type": "text", "text": HEAR}]}],
    }  # fmt: skip
    try:
        return str(server.ask(body)["choices"][0]["message"]["content"])
    except ServerError as error:
        return error
    except (KeyError, IndexError, TypeError):
        return ServerError("the answer of the model that hears holds no text")


def check_speech(
    row: Mapping[str, Any], *, transcriber: str | None = None, url: str = "", model: str = "",
    similarity: str | None = None, **_: Any,
) -> None:  # fmt: skip
    """RewardError for a row without a text to say or, where voices are compared, without one; and for nobody who could
    hear."""
    if not transcriber and not (url and model):
        raise RewardError(
            "reward 'speech' needs somebody who hears: option transcriber=file.py:function, of sounds to texts, or url "
            "and model of an OpenAI-compatible server whose model takes audio"
        )
    if not words(answers.truth(row.get("solution"))):
        raise RewardError(f"solution is {row.get('solution')!r}; expected the text to be said", "solution")
    if similarity and answers.is_missing(row.get("speaker")):
        raise RewardError(f"speaker is {row.get('speaker')!r}; expected what option similarity reads", "speaker")


@reward(
    "speech",
    check=check_speech,
    method="indextts_2_5",
    paper="IndexTTS 2.5, arXiv 2601.03888; the sum of both is F5R-TTS's, arXiv 2504.02407",
    formula="(w_text max(0, 1 - WER(heard, wanted)) + w_voice max(0, cos(voice, speaker))) / (w_text + w_voice)",
    confidence="reconstructed",
)
def speech(
    completions, solution, speaker=None, *, transcriber: str | None = None, url: str = "", model: str = "",
    similarity: str | None = None, codec: str | None = None, characters: bool = False, text_weight: float = 1.0,
    voice_weight: float = 1.0, concurrency: int = 4, timeout: float = 120.0, retries: int = 3,
    key_env: str | None = None,
) -> list[dict[str, Any]]:  # fmt: skip
    """How much of the text `solution` is heard in a sound and, with `similarity`, how like its voice is to `speaker`.

    transcriber  file.py:function, of a list of `mmrl.media.Sound` to their texts; or url and model of a chat model that
                 hears, over an OpenAI-compatible address
    similarity   file.py:function(sounds, speakers) to cosines in [-1, 1]; what stands in `speaker` is its business
    codec        file.py:function, of a list of texts to sounds, for a policy that writes speech tokens; None for a text
                 that is no speech, which is worth 0
    characters   error rates of characters in place of words
    text_weight, voice_weight  of the two parts

    A sound that nobody could transcribe, or whose voice nobody could compare, is unscored, by cause. Components
    `error_rate`, `text` and `voice`.
    """
    options = {"transcriber": transcriber, "url": url, "model": model, "similarity": similarity}
    for place, right in enumerate(solution):
        check_speech({"solution": right, "speaker": speaker[place] if speaker else None}, **options)
    if text_weight < 0 or voice_weight < 0 or not text_weight + (voice_weight if similarity else 0):
        raise RewardError(f"speech: text_weight={text_weight}, voice_weight={voice_weight}; expected a positive sum")
    sounds = _sounds(completions, codec)
    there = [i for i, sound in enumerate(sounds) if sound is not None]
    if transcriber:
        heard = _asked(transcriber, "transcriber", [sounds[i] for i in there])
    else:
        server = Server(chat_url(url), timeout, retries, key_env)
        with ThreadPoolExecutor(max(1, min(concurrency, len(there)))) as threads:
            heard = list(threads.map(lambda i: heard_by(server, model, sounds[i]), there))
    voices: list[Any] = [None] * len(there)
    if similarity:
        voices = _asked(similarity, "similarity", [sounds[i] for i in there], [speaker[i] for i in there])
    nothing = _score(1.0, 0.0 if similarity else None, text_weight, voice_weight)
    scores = [dict(nothing) for _ in completions]
    for i, text, voice in zip(there, heard, voices, strict=True):
        if text is None or isinstance(text, ServerError):
            scores[i] = {"score": text or ServerError("the transcriber gave no text")}
            continue
        if similarity and (voice is None or not math.isfinite(voice)):
            scores[i] = {"score": ServerError(f"similarity said {voice!r} of a voice; expected a number")}
            continue
        rate = error_rate(str(text), answers.truth(solution[i]), characters=characters)
        scores[i] = _score(rate, max(0.0, float(voice)) if similarity else None, text_weight, voice_weight)
    return scores


def _score(rate: float, voice: float | None, text_weight: float, voice_weight: float) -> dict[str, Any]:
    text = max(0.0, 1 - rate)
    parts = {"error_rate": rate, "text": text}
    if voice is None:
        return {"score": text, **parts}
    return {
        "score": (text_weight * text + voice_weight * voice) / (text_weight + voice_weight),
        **parts,
        "voice": voice,
    }


def _sounds(completions: Sequence[Any], codec: str | None) -> list[Any]:
    """A sound for each completion; None for a text that is no speech."""
    texts = [i for i, each in enumerate(completions) if isinstance(each, str)]
    if texts and not codec:
        raise RewardError("speech: the policy writes texts; name option codec=file.py:function, of texts to sounds")
    found = list(completions)
    made = _asked(str(codec), "codec", [completions[i] for i in texts]) if texts else []
    for i, sound in zip(texts, made, strict=True):
        found[i] = sound
    for each in found:
        if each is not None and not (hasattr(each, "samples") and hasattr(each, "rate")):
            raise RewardError(f"speech reads mmrl.media.Sound, got a {type(each).__name__}")
    return found


def _asked(name: str, option: str, *given: list[Any]) -> list[Any]:
    """What a function of the user's says, one for each."""
    said = list(_named(name)(*given)) if given[0] else []
    if len(said) != len(given[0]):
        raise RewardError(f"speech: {option} {name} gave {len(said)} for {len(given[0])}")
    return said
