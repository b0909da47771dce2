"""The engine for many short questions behind one long beginning: the prefix is run once, the suffixes as packed rows.

In: blocks of token ids (`engine.py`) and a model of a family that `anatomy.py` knows, on the CPU or a GPU. Out: what
`reference` says, to rounding. What is saved: the prefix's keys and values are computed once for all suffixes, and of a
prefix that begins like an earlier one only the rest; suffixes stand one behind the other in rows of about `tokens`
tokens, so that nothing is padded but in a small part of attention (`attention.py`); the head is read at the last token
of each. A `Screen` can drop suffixes in the middle of the model; the others stay exact.
Invariant: a suffix's answer depends on the prefix and on itself alone. A model or a length that this would get wrong is
refused, by name.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nlrewrite.errors import SettingError
from nlrewrite.llm import anatomy, attention, decoding, head, packing
from nlrewrite.llm.attention import Growing, KeyValues, Own, Packing, Step, Suffixes
from nlrewrite.llm.engine import Completion, Outcome, PrefixBlock, Sampling, Scores, Usage
from nlrewrite.llm.packing import Map

REMEMBERED, SEGMENT = 2, 64
"""Prefixes whose keys and values are held, and tokens of them that are run, and reused, together."""
ROOM = 16
"""Keys and values of replies in progress are held for this many times `tokens`."""
COMPACT = 0.75
"""Finished replies are dropped from a batch once no more than this share of it goes on."""


@dataclass(frozen=True)
class Screen:
    """Which suffixes go on behind a layer."""

    layer: int
    """Layers that all suffixes pass; at least 1, and fewer than the model has."""
    keep: Callable[[Tensor], Tensor]
    """From the hidden states at the ends of all suffixes, float32 [N, width] in the block's order (without those that
    are refused), to those that go on: a bool [N], or their indices. It is asked once for a block, whose hidden states
    are all held until it answers."""


@dataclass(frozen=True)
class Row:
    """Suffixes on their way through the layers."""

    chosen: np.ndarray
    """Which of the block's."""
    map: Map
    hidden_SD: Tensor


class Packed:
    """Shared prefixes once, suffixes in packed rows."""

    name = "packed"

    def __init__(
        self, model: nn.Module, tokenizer: Any, *, tokens: int = 2048, mass: bool = True, top: bool = False
    ) -> None:
        self.anatomy = anatomy.of(model)
        self.exact_mass = mass
        self.usage = Usage()
        self._model: Any = model
        self._tokenizer, self._tokens, self._top = tokenizer, tokens, top
        self._ends = decoding.ends(model, tokenizer)
        self._remembered: OrderedDict[bytes, KeyValues] = OrderedDict()
        self._dtype = next(model.parameters()).dtype
        self._device = next(model.parameters()).device
        attention.register()
        self._attend()

    def about(self) -> dict[str, object]:
        import transformers

        return {
            "engine": self.name,
            "model": str(self._model.config.model_type),
            "dtype": str(self._dtype).removeprefix("torch."),
            "attention": f"two parts, {attention.kernel(self._device, self._dtype)}",
            "torch": torch.__version__,
            "transformers": transformers.__version__,
        }

    @torch.inference_mode()
    def digits(self, block: PrefixBlock, screen: Screen | None = None) -> Scores:
        started = time.perf_counter()
        self._attend()
        outcome_N = np.full(len(block), Outcome.OK, dtype=np.int8)
        length_N = len(block.prefix) + block.lengths
        if self.anatomy.longest is not None:
            outcome_N[length_N > self.anatomy.longest] = Outcome.REFUSED
        asked = np.flatnonzero(outcome_N == Outcome.OK)
        hidden_ND = torch.empty(len(block), self.anatomy.width, dtype=self._dtype, device=self._device)
        if len(asked):
            self.anatomy.check(int(length_N[asked].max()))
            prefix = self._prefix(block.prefix)
            for row in self._passed(block, asked, prefix, screen, outcome_N):
                hidden_ND[row.chosen] = row.hidden_SD[row.map.last_N]
            self.usage.prompt_tokens += int(block.lengths[asked].sum())
            self.usage.cached_tokens += (len(asked) - 1) * len(block.prefix)
        result = self._scores(block, hidden_ND, outcome_N)
        self.usage.queries += len(block)
        self._count_failed(result.outcome)
        self.usage.seconds += time.perf_counter() - started
        return result

    @torch.inference_mode()
    def complete(self, prompts: Sequence[np.ndarray], sampling: Sampling) -> list[Completion]:
        started = time.perf_counter()
        self._attend()
        given = [np.asarray(prompt, dtype=np.int32) for prompt in prompts]
        result = [decoding.refused(prompt, self.anatomy.longest) for prompt in given]
        asked = np.flatnonzero([each is None for each in result])
        if len(asked):
            shared = _shared([given[index] for index in asked])
            prefix = self._prefix(given[asked[0]][:shared]) if shared else None
            self.usage.cached_tokens += (len(asked) - 1) * shared
            for batch in self._batches(given, asked, shared, sampling.most):
                answers = self._completions([given[index] for index in batch], prefix, shared, sampling)
                for index, answer in zip(batch, answers, strict=True):
                    result[index] = answer
        answered = [each for each in result if each is not None]
        self.usage.queries += len(prompts)
        self._count_failed(np.array([each.outcome for each in answered], dtype=np.int8))
        self.usage.seconds += time.perf_counter() - started
        return answered

    def close(self) -> None:
        """Forget the prefixes."""
        self._remembered.clear()

    def _attend(self) -> None:
        """Have the layers call `attention.attend`, for good: another engine may be using the model too."""
        self._model.config._attn_implementation = attention.NAME

    # -- the prefix ---------------------------------------------------------------------------------------------------

    def _prefix(self, prefix: np.ndarray) -> KeyValues:
        """Its keys and values. It is run in segments, so that they are the same bits whether a remembered prefix began
        with some of the segments or not."""
        name = np.ascontiguousarray(prefix, dtype=np.int32).tobytes()
        found = self._remembered.pop(name, None)
        common = len(prefix)
        if found is None:
            found, common = self._begun(prefix)
            for start in range(common, len(prefix), SEGMENT):
                ids_S = torch.from_numpy(prefix[start : start + SEGMENT].astype(np.int64)).to(self._device)
                positions = torch.arange(start, start + len(ids_S), device=self._device)
                last = len(self.anatomy.layers)
                self._through(self.anatomy.embed(ids_S), positions, Growing(found, start), 0, last)
        self.usage.cached_tokens += common
        self.usage.prompt_tokens += len(prefix) - common
        self._remembered[name] = found
        while len(self._remembered) > REMEMBERED:
            self._remembered.popitem(last=False)
        return found

    def _begun(self, prefix: np.ndarray) -> tuple[KeyValues, int]:
        """Room for its keys and values, with those of the whole segments that a remembered prefix begins with too."""
        anatomy, like = self.anatomy, torch.empty(0, dtype=self._dtype, device=self._device)
        room = KeyValues.empty(len(anatomy.layers), anatomy.key_heads, len(prefix), anatomy.head_size, like)
        alike = {name: _alike(prefix, np.frombuffer(name, dtype=np.int32)) for name in self._remembered}
        best = max(alike, key=lambda name: alike[name], default=None)
        if best is None:
            return room, 0
        common = alike[best] // SEGMENT * SEGMENT
        before = self._remembered[best].cropped(common)
        for ours, theirs in zip((*room.keys, *room.values), (*before.keys, *before.values), strict=True):
            ours[:, :, :common] = theirs
        return room, common

    # -- the layers ---------------------------------------------------------------------------------------------------

    def _through(self, hidden_SD: Tensor, position_S: Tensor, packing: Packing, first: int, last: int) -> Tensor:
        """A row behind layers `first` to `last`, the last one not included."""
        hidden, positions = hidden_SD[None], position_S[None]
        angles = self.anatomy.rotary(hidden, positions)
        for layer in self.anatomy.layers[first:last]:
            hidden = layer(
                hidden, attention_mask=None, position_ids=positions, position_embeddings=angles, packing=packing
            )
        return hidden[0]

    def _passed(
        self, block: PrefixBlock, asked: np.ndarray, prefix: KeyValues, screen: Screen | None, outcome_N: np.ndarray
    ) -> Iterable[Row]:
        layers = len(self.anatomy.layers)
        rows = (self._row(block, asked[chosen]) for chosen in packing.chunks(block.lengths[asked], self._tokens))
        if screen is None:
            return (self._forward(row, prefix, 0, layers) for row in rows)
        if not 0 < screen.layer < layers:
            raise SettingError(
                f"a screen stands behind a layer before the last: ask.screen_layer={screen.layer}, and the reader has "
                f"{layers}. Lower --set ask.screen_layer, or use ask.screen=none"
            )
        halfway = [self._forward(row, prefix, 0, screen.layer) for row in rows]
        kept = self._kept(len(block), asked, halfway, screen)
        outcome_N[asked[~kept[asked]]] = Outcome.SKIPPED
        return (self._forward(row, prefix, screen.layer, layers) for row in self._repacked(halfway, kept))

    def _row(self, block: PrefixBlock, chosen: np.ndarray) -> Row:
        part = block.at(chosen)
        return Row(chosen, *self._embedded(part.lengths, part.suffix_tokens))

    def _embedded(self, lengths_N: np.ndarray, ids_T: np.ndarray) -> tuple[Map, Tensor]:
        map = Map.of(lengths_N, self._device)
        return map, self.anatomy.embed(map.even(torch.from_numpy(ids_T.astype(np.int64)).to(self._device)))

    def _forward(self, row: Row, prefix: KeyValues, first: int, last: int) -> Row:
        hidden_SD = self._through(row.hidden_SD, len(prefix) + row.map.off_S, Suffixes(row.map, prefix), first, last)
        return Row(row.chosen, row.map, hidden_SD)

    def _kept(self, count: int, asked: np.ndarray, rows: list[Row], screen: Screen) -> np.ndarray:
        """bool [count]."""
        hidden_ND = torch.empty(count, self.anatomy.width, device=self._device)
        for row in rows:
            hidden_ND[row.chosen] = row.hidden_SD[row.map.last_N].float()
        told = screen.keep(hidden_ND[asked])
        kept = torch.zeros(len(asked), dtype=torch.bool, device=self._device)
        kept[told] = True
        result = np.zeros(count, dtype=bool)
        result[asked] = kept.cpu().numpy()
        return result

    def _repacked(self, rows: list[Row], kept: np.ndarray) -> list[Row]:
        """Rows of the kept suffixes alone, as full as before."""
        taken: list[tuple[np.ndarray, np.ndarray, Tensor]] = []
        for row in rows:
            inside = np.flatnonzero(kept[row.chosen])
            if len(inside):
                at = torch.from_numpy(packing.tokens_of(row.map.lengths_N, inside)).to(self._device)
                taken.append((row.chosen[inside], row.map.lengths_N[inside], row.hidden_SD[at]))
        rows.clear()
        result: list[Row] = []
        while taken:
            group = [taken.pop(0)]
            while taken and sum(len(each[2]) for each in (*group, taken[0])) <= self._tokens:
                group.append(taken.pop(0))
            chosen, lengths = (np.concatenate([each[part] for each in group]) for part in (0, 1))
            map = Map.of(lengths, self._device)
            result.append(Row(chosen, map, map.even(torch.cat([each[2] for each in group]))))
        return result

    # -- answers ------------------------------------------------------------------------------------------------------

    def _scores(self, block: PrefixBlock, hidden_ND: Tensor, outcome_N: np.ndarray) -> Scores:
        known = np.flatnonzero(outcome_N == Outcome.OK)
        logp_NK = np.full((len(block), len(block.labels)), np.nan, dtype=np.float32)
        logmass_N = np.full(len(block), np.nan, dtype=np.float32) if self.exact_mass else None
        top_NK = np.zeros(logp_NK.shape, dtype=bool) if self._top else None
        if len(known):
            normed_ND = self.anatomy.norm(hidden_ND[known])
            found = head.scores(normed_ND, self.anatomy.head, block.labels, mass=self.exact_mass, top=self._top)
            for whole, part in zip((logp_NK, logmass_N, top_NK), found, strict=True):
                if whole is not None and part is not None:
                    whole[known] = part.cpu().numpy()
            unsound = outcome_N == Outcome.OK  # numbers of half precision may have become too large on the way
            unsound &= np.isnan(logp_NK).any(1)
            outcome_N[unsound], logp_NK[unsound] = Outcome.UNPARSEABLE, np.nan
            if logmass_N is not None:
                logmass_N[unsound] = np.nan
            if top_NK is not None:
                top_NK[unsound] = False
        return Scores(logp_NK, logmass_N, outcome_N, top=top_NK)

    def _count_failed(self, outcome_N: np.ndarray) -> None:
        for outcome in (Outcome.UNPARSEABLE, Outcome.REFUSED, Outcome.SKIPPED):
            if count := int((outcome_N == outcome).sum()):
                self.usage.failed[outcome.name] = self.usage.failed.get(outcome.name, 0) + count

    # -- replies ------------------------------------------------------------------------------------------------------

    def _most(self, prompt: np.ndarray, most: int) -> int:
        return most if self.anatomy.longest is None else min(most, self.anatomy.longest - len(prompt))

    def _batches(self, given: list[np.ndarray], asked: np.ndarray, shared: int, most: int) -> list[np.ndarray]:
        """The asked prompts by length, as many at a time as there is room for what they will hold."""
        lengths = np.array([len(given[index]) for index in asked])
        ordered, result = asked[np.argsort(lengths, kind="stable")], []
        while len(ordered):
            room = np.array([len(given[index]) - shared + most for index in ordered])
            fitting = int((room * np.arange(1, len(room) + 1) <= ROOM * self._tokens).sum())
            result.append(ordered[: max(fitting, 1)])
            ordered = ordered[max(fitting, 1) :]
        return result

    def _completions(
        self, prompts: list[np.ndarray], prefix: KeyValues | None, shared: int, sampling: Sampling
    ) -> list[Completion]:
        """Replies to prompts that are ordered by length and begin with the same `shared` tokens, the prefix's."""
        limits = [self._most(prompt, sampling.most) for prompt in prompts]
        replies = [
            decoding.Reply(prompt, sampling, self._tokenizer, self._ends, most)
            for prompt, most in zip(prompts, limits, strict=True)
        ]
        lengths_N = np.array([len(prompt) - shared for prompt in prompts])
        self.anatomy.check(max(len(prompt) + most for prompt, most in zip(prompts, limits, strict=True)))
        room = int((lengths_N + limits).max())
        layers, like = len(self.anatomy.layers), torch.empty(0, dtype=self._dtype, device=self._device)
        own = Own.empty(layers, len(prompts), self.anatomy.key_heads, room, self.anatomy.head_size, like)
        last_ND = self._read(prompts, lengths_N, prefix, shared, own)
        going, before_N = list(range(len(prompts))), torch.from_numpy(lengths_N).to(self._device)
        reach = int(lengths_N.max())
        while unfinished := [at for at, index in enumerate(going) if not replies[index].finished]:
            if len(unfinished) <= COMPACT * len(going):
                chosen = torch.tensor(unfinished, device=self._device)
                own, before_N, last_ND = own.at(chosen), before_N[chosen], last_ND[chosen]
                going = [going[at] for at in unfinished]
            logits_NV = head.logits(self.anatomy.norm(last_ND), self.anatomy.head)
            tokens = decoding.extend([replies[index] for index in going], logits_NV, sampling.temperature)
            self.usage.new_tokens += len(unfinished)
            if all(replies[index].finished for index in going):
                break
            reach = min(reach + 1, room)
            embedded_ND = self.anatomy.embed(torch.tensor(tokens, device=self._device))
            last_ND = self._through(embedded_ND, shared + before_N, Step(prefix, own, before_N, reach), 0, layers)
            before_N = (before_N + 1).clamp(max=room - 1)  # reached by finished ones alone
        return [reply.completion() for reply in replies]

    def _read(
        self, prompts: list[np.ndarray], lengths_N: np.ndarray, prefix: KeyValues | None, shared: int, own: Own
    ) -> Tensor:
        """Hidden states at the ends of the prompts [N, width]; what they hold beyond the prefix is left in `own`."""
        last_ND = torch.empty(len(prompts), self.anatomy.width, dtype=self._dtype, device=self._device)
        for chosen in packing.chunks(lengths_N, self._tokens):
            rows = slice(int(chosen[0]), int(chosen[-1]) + 1)  # lengths ascend already, so chunks are runs
            ids_T = np.concatenate([prompts[index][shared:] for index in chosen])
            map, hidden_SD = self._embedded(lengths_N[chosen], ids_T)
            suffixes = Suffixes(map, prefix, own, rows.start)
            last = len(self.anatomy.layers)
            last_ND[rows] = self._through(hidden_SD, shared + map.off_S, suffixes, 0, last)[map.last_N]
            self.usage.prompt_tokens += len(ids_T)
        return last_ND


def _alike(first: np.ndarray, second: np.ndarray) -> int:
    """How many tokens two texts begin with alike."""
    shorter = min(len(first), len(second))
    differs = np.flatnonzero(first[:shorter] != second[:shorter])
    return int(differs[0]) if len(differs) else shorter


def _shared(prompts: list[np.ndarray]) -> int:
    """How many tokens all prompts begin with alike, less than the shortest has."""
    least = min(len(prompt) for prompt in prompts) - 1
    return min([least, *(_alike(prompts[0], prompt) for prompt in prompts[1:])])
