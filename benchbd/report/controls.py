"""What the cells of a table are compared with: controls, and the same defense of the clean encoder.

Only records are read; torch is never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from itertools import product
from typing import Any

from benchbd.contract.roles import Role
from benchbd.planning.sweeps import point_text
from benchbd.records.models import Entry, Metrics, Record
from benchbd.report.statistics import interval

CONTROLS = (Role.SCRATCH, Role.BN)
"""The roles of defenses that the others are compared with."""

OWN_FLOOR = "own_floor"
"""A defense's own floor: the same defense of the clean encoder."""


class Controls:
    """The runs that others are compared with: by role, place, attack and seed, or ``OWN_FLOOR``, defense and seed."""

    def __init__(self, records: Iterable[Record]) -> None:
        self._known: dict[tuple[object, ...], list[Record]] = {}
        for record in (record for record in records if record.metrics):
            if record.defense_role in CONTROLS:
                key = (record.defense_role, *place(record)[:-1], _attack(record), record.seed)
                self._known.setdefault(key, []).append(record)
            if record.attack_role is Role.FLOOR:
                self._known.setdefault(_own(record), []).append(record)

    def compared(self, measured: Sequence[tuple[Record, Metrics]]) -> tuple[dict[str, Any], tuple[str, ...]]:
        """A row's differences to each of them, by field, and a note where some seeds have no run to compare with."""
        fields: dict[str, Any] = {}
        notes: tuple[str, ...] = ()
        finders: dict[str, Callable[[Record], Record | None]] = {
            **{role.value: partial(self.control, role) for role in CONTROLS},
            OWN_FLOOR: self.own_floor,
        }
        for name, find in finders.items():
            found, partly = _compared(name, measured, find)
            fields |= found
            notes += partly
        del fields[f"acc_to_{OWN_FLOOR}"]  # an attack is to change no accuracy
        return fields, notes

    def control(self, role: Role, record: Record) -> Record | None:
        """The run of a control that a record is compared with: in the same place, under the same evaluation.

        The trigger is the attack's, so the attack's own cell comes first. ``scratch`` has the same weights under every
        attack; a control that starts from the encoder must have started from the record's.
        """
        here, starts = (role, *place(record)[:-2]), role is not Role.SCRATCH
        attacks = dict.fromkeys((_attack(record), *([] if starts else [""])))
        for point, attack in product(dict.fromkeys((point_text(record.point), "")), attacks):
            known = self._known.get((*here, point, attack, record.seed), ())
            alike = [
                each
                for each in known
                if _evaluation(each) == _evaluation(record) and (not starts or _encoder(each) == _encoder(record))
            ]
            if (nearest := nearest_departures(departures(record), map(departures, alike))) is not None:
                return next(each for each in alike if departures(each) == nearest)
        return None

    def own_floor(self, record: Record) -> Record | None:
        """The run of the same defense, with its options and images, of the clean encoder, under the same evaluation."""
        if Role.FLOOR in (record.attack_role, record.defense_role):
            return None
        own, known = (_evaluation(record), _repair(record)), self._known.get(_own(record), ())
        return next((each for each in known if (_evaluation(each), _repair(each)) == own), None)


def _compared(
    name: str, measured: Sequence[tuple[Record, Metrics]], find: Callable[[Record], Record | None]
) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The fields of a row for its differences to what ``find`` gives, and a note if some seeds have no run of it."""
    pairs = [
        (record, metrics, other.metrics)
        for record, metrics in measured
        if (other := find(record)) is not None and other.metrics
    ]
    seeds, shown = tuple(record.seed for record, _, _ in pairs), name.replace("_", " ")
    partly = f"Δ {shown}: over {len(seeds)} of {len(measured)} seeds, those with its run"
    found = {
        f"acc_to_{name}": interval(metrics.acc - other.acc for _, metrics, other in pairs),
        f"asr_nontarget_to_{name}": interval(
            metrics.asr_nontarget - other.asr_nontarget for _, metrics, other in pairs
        ),
        f"{name}_seeds": seeds,
    }
    return found, (partly,) * (0 < len(seeds) < len(measured))


def _attack(record: Record) -> str:
    """The attack's name; empty for the clean encoder, whatever its floor's name."""
    return "" if record.attack_role is Role.FLOOR else record.attack


def _own(record: Record) -> tuple[object, ...]:
    """The key of the same defense of the clean encoder."""
    return OWN_FLOOR, *place(record)[:-2], record.defense, record.seed


def _repair(record: Record) -> Mapping[str, Any]:
    """The setting of a defense: all of its stage's identity except the encoder."""
    return {name: part for name, part in record.identity.get("defend", {}).items() if name != "parents"}


def _encoder(record: Record) -> tuple[str | None, ...]:
    """The keys of the encoder before its defense."""
    return record.stages.get("pretrain"), record.stages.get("attack")


def _evaluation(record: Record) -> tuple[Any, ...]:
    """The setting of an encoder's evaluation: evaluator, data, precision and trigger."""
    identity = record.identity.get("evaluate", {})
    return *map(identity.get, ("method", "data", "numerics")), identity.get("params", {}).get("trigger")


def nearest_departures(own: Sequence[str], known: Iterable[tuple[str, ...]]) -> tuple[str, ...] | None:
    """The departures in ``known`` to compare a record with whose departures are ``own``: a largest subset of ``own``;
    None if there is none. A departure marks only results that depend on it: if a repair has another learning rate,
    its floor and its control are still the board's."""
    return max((each for each in known if set(each) <= set(own)), key=len, default=None)


def place(record: Record) -> tuple[object, ...]:
    """The values that two cells must share to be compared."""
    point, beside = point_text(record.point), tuple(record.beside)
    return record.pretrain, task_name(record), record.evaluator, beside, point, departures(record)


def task_name(record: Record) -> str:
    """Task and target index, as in "gtsrb:12"."""
    return f"{record.task}:{record.target}"


def precision_of(record: Entry) -> str:
    """The precision of the last stage, from the identity if the record does not say; empty if neither does."""
    stated = (identity["numerics"]["precision"] for identity in record.identity.values() if "numerics" in identity)
    return record.precision or next(stated, "")


def departures(record: Entry) -> tuple[str, ...]:
    """The options in which a record is off-board, sorted; empty for an on-board one alone."""
    return () if record.on_board else tuple(sorted(record.departures)) or ("not said in what",)
