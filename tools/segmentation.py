"""Chinese word segmentation for lac: text with its words marked, the model's inputs, and F1.

lac gives each character a score for every tag; tags that end in -I go on with a word, the others
begin one. Which tag follows which is scored by a matrix outside the model, as in its own package.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx

from onnx_rnn_prune.errors import PruneError
from onnx_rnn_prune.model.runner import Runner

Words = tuple[str, ...]
Span = tuple[int, int]
Scores = npt.NDArray[np.float32]
Feed = dict[str, npt.NDArray[np.int64]]

UNKNOWN = "OOV"
PERSON = "nr"
# Paragraphs to calibrate on, to train on, and to measure on.
CALIBRATION, TRAINING, EVALUATION = 150, 2400, 1000


@dataclass(frozen=True)
class Tables:
    """What belongs to lac beside its file.

    Attributes:
        ids: of characters.
        folded: characters that count as others, as full-width digits do.
        inside: the ids of tags that go on with a word.
        transitions: the score of each tag after each other, [tags before, tags].
    """

    ids: Mapping[str, int]
    folded: Mapping[str, str]
    inside: frozenset[int]
    transitions: Scores

    @staticmethod
    def read(folder: Path) -> Tables:
        """The tables that `fetch_models` puts into a folder."""
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
    """The words of each paragraph, which the file gives as `word/tag word/tag`.

    It writes a person's family name and given name apart, lac together: these are joined.
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
    """Words as (first character, one after the last), from where each begins."""
    edges = sorted({0, *starts, end})
    return set(pairwise(edges))


def segment(runner: Runner, tables: Tables, text: str) -> set[Span]:
    """Where the model finds words."""
    scores = next(iter(runner(tables.feed(text)).values()))[0]
    tags = best_tags(scores, tables.transitions)
    starts = [place for place, tag in enumerate(tags) if tag not in tables.inside]
    return spans(starts, len(text))


def f1(runner: Runner, tables: Tables, paragraphs: Iterable[Words]) -> float:
    """Harmonic mean of precision and recall of whole words, 0 to 1."""
    right = found = wanted = 0
    for words in paragraphs:
        text = "".join(words)
        real = spans(np.cumsum([len(word) for word in words]).tolist(), len(text))
        guess = segment(runner, tables, text)
        right += len(real & guess)
        found += len(guess)
        wanted += len(real)
    return 2.0 * right / (found + wanted)


@dataclass(frozen=True, eq=False)
class Text:
    """Paragraphs of a newspaper to calibrate or train lac on, and later ones to measure it on."""

    tables: Tables
    calibration: Sequence[Words]
    evaluation: Sequence[Words]

    @staticmethod
    def read(folder: Path, seed: int = 0) -> Text:
        """What `fetch_models` put into a folder; the seed draws what to calibrate on.

        Raises:
            PruneError: it is not there.
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
        """What to calibrate with: so many paragraphs, one each."""
        return [self.tables.feed("".join(words)) for words in self.calibration[:count]]

    def f1(self, model: onnx.ModelProto) -> float:
        """How well a model finds the words of the paragraphs for evaluation."""
        return f1(Runner(model, name="lac"), self.tables, self.evaluation)


def _drawn(paragraphs: Sequence[Words], count: int, seed: int) -> list[Words]:
    chosen = np.random.default_rng(seed).permutation(len(paragraphs))[:count]
    return [paragraphs[number] for number in chosen]
