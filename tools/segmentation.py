"""Chinese word segmentation for lac: segmented text, the model's inputs, and F1.

lac scores every tag for each character; tags ending in -I continue a word, the others begin one.
Transitions between tags are scored by a matrix outside the model, as in its own package.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner

Words = tuple[str, ...]
Span = tuple[int, int]
Scores = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[np.int64]]
Pair = tuple[Mapping[str, Any], Mapping[str, Any]]  # a feed and its outputs

UNKNOWN = "OOV"
PERSON = "nr"
# Numbers of paragraphs for calibration, training and evaluation.
CALIBRATION, TRAINING, EVALUATION = 150, 2400, 1000


@dataclass(frozen=True)
class Tables:
    """lac's data besides the model file.

    Attributes:
        ids: ids of characters.
        folded: characters treated as others, such as full-width digits.
        inside: the ids of tags that continue a word.
        transitions: the score of each tag after each other, [tags before, tags].
    """

    ids: Mapping[str, int]
    folded: Mapping[str, str]
    inside: frozenset[int]
    transitions: Scores

    @staticmethod
    def read(folder: Path) -> Tables:
        """The tables in a folder that `fetch_models` filled."""
        tags = _pairs(folder / "tag.dic")
        return Tables(
            ids={character: int(number) for number, character in _pairs(folder / "word.dic")},
            folded=dict(_pairs(folder / "q2b.dic")),
            inside=frozenset(int(number) for number, tag in tags if tag.endswith("-I")),
            transitions=np.load(folder / "lac_crf_transitions.npy"),
        )

    def feed(self, text: str) -> Feed:
        """The model's inputs for one piece of text: ids [1, characters] and their number [1]."""
        unknown = self.ids[UNKNOWN]
        found = [self.ids.get(self.folded.get(each, each), unknown) for each in text]
        return {"token_ids": np.array([found]), "length": np.array([len(text)])}


def _pairs(path: Path) -> list[tuple[str, str]]:
    lines = path.read_text("utf-8").split("\n")
    pairs = (line.partition("\t") for line in lines if "\t" in line)
    return [(first, second) for first, _, second in pairs]


def read_corpus(path: Path) -> list[Words]:
    """The words of each paragraph, which the file stores as `word/tag word/tag`.

    It separates a person's family name and given name, lac does not: these are joined.
    """
    paragraphs = []
    for line in path.read_text("utf-8").splitlines():
        pairs = [part.rpartition("/")[::2] for part in line.split()]
        if pairs:
            paragraphs.append(tuple(_joined(pairs)))
    return paragraphs


def _joined(pairs: Iterable[Sequence[str]]) -> Iterator[str]:
    family = ""
    for word, tag in pairs:
        if family and tag == PERSON:
            yield family + word
            family = ""
            continue
        if family:
            yield family
        family = word if tag == PERSON else ""
        if not family:
            yield word
    if family:
        yield family


def best_tags(scores: Scores, transitions: Scores) -> list[int]:
    """The tags with the highest sum of scores [characters, tags] and transitions (Viterbi 1967)."""
    total, before = scores[0], []
    for score in scores[1:]:
        reached = total[:, None] + transitions
        before.append(reached.argmax(0))
        total = reached.max(0) + score
    tags = [int(total.argmax())]
    for best in reversed(before):
        tags.append(int(best[tags[-1]]))
    return tags[::-1]


def spans(starts: Iterable[int], end: int) -> set[Span]:
    """Words as (first character, one past the last), from their start positions."""
    edges = sorted({0, *starts, end})
    return set(pairwise(edges))


def labelled(tables: Tables, words: Words) -> Feed:
    """A paragraph as a feed, labelled with where each word ends."""
    ends = np.cumsum([len(word) for word in words])
    return {**tables.feed("".join(words)), "labels": ends}


def word_f1(tables: Tables) -> Callable[[Iterable[Pair]], float]:
    """The metric: F1 of words, from lac's tag scores and the labels.

    The harmonic mean of precision and recall of whole words, 0 to 1.
    """

    def measure(results: Iterable[Pair]) -> float:
        right = found = wanted = 0
        for given, outputs in results:
            tags = best_tags(next(iter(outputs.values()))[0], tables.transitions)
            starts = [place for place, tag in enumerate(tags) if tag not in tables.inside]
            length = int(given["labels"][-1])
            guess, real = spans(starts, length), spans(given["labels"].tolist(), length)
            right += len(real & guess)
            found += len(guess)
            wanted += len(real)
        return 2.0 * right / max(found + wanted, 1)

    return measure


def f1(runner: Runner, tables: Tables, paragraphs: Iterable[Words]) -> float:
    """F1 of the words that a model finds."""
    feeds = (labelled(tables, words) for words in paragraphs)
    return word_f1(tables)((feed, runner(feed)) for feed in feeds)


@dataclass(frozen=True, eq=False)
class Text:
    """Newspaper paragraphs to calibrate or train lac on, and later ones for evaluation."""

    tables: Tables
    calibration: Sequence[Words]
    evaluation: Sequence[Words]

    @staticmethod
    def read(folder: Path, seed: int = 0) -> Text:
        """The text in a folder that `fetch_models` filled; the seed draws calibration paragraphs.

        Raises:
            PruneError: it is missing.
        """
        corpus, tables = folder / "newspaper" / "199801.txt", folder / "lac_tables"
        if not corpus.exists() or not tables.is_dir():
            remedy = f"run python tools/fetch_models.py lac lac_tables newspaper --to {folder}"
            raise PruneError("no newspaper and lac_tables", where=str(folder), remedy=remedy)
        paragraphs = read_corpus(corpus)
        middle = len(paragraphs) // 2
        return Text(
            tables=Tables.read(tables),
            calibration=_drawn(paragraphs[:middle], TRAINING, seed),
            evaluation=_drawn(paragraphs[middle:], EVALUATION, 0),
        )

    def feeds(self, count: int = CALIBRATION) -> list[Feed]:
        """Feeds for calibration: `count` paragraphs, one each."""
        return [self.tables.feed("".join(words)) for words in self.calibration[:count]]

    def f1(self, model: onnx.ModelProto) -> float:
        """F1 of a model on the evaluation paragraphs."""
        return f1(Runner(model, name="lac"), self.tables, self.evaluation)


def _drawn(paragraphs: Sequence[Words], count: int, seed: int) -> list[Words]:
    chosen = np.random.default_rng(seed).permutation(len(paragraphs))[:count]
    return [paragraphs[number] for number in chosen]
