"""Cards of encoders and boards for the Hugging Face Hub: the README.md of a repository, with YAML at its head."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from benchbd.base.errors import counted
from benchbd.contract.roles import Role
from benchbd.planning.board import Board
from benchbd.records.models import Inspected, Record
from benchbd.report import leaderboard
from benchbd.report.inspected import documents
from benchbd.report.rows import Order
from benchbd.report.writers import markdown

_FIGURES = {
    "acc": "accuracy",
    "asr": "attack success rate",
    "asr_nontarget": "attack success rate, other classes",
    "ra": "accuracy with the trigger, other classes",
}


def encoder_card(facts: Mapping[str, object], licence: str, records: Sequence[Record], tied: int = 0) -> str:
    """The card of an encoder.

    facts: lines of a table, by name; ``name`` is the card's title, ``file`` the name of the encoder's file. records:
    of cells with this encoder, as its publisher says; their figures are in the table and at the head of the card.
    tied: how many of them contain the digest of the encoder's file. The card says what that means.
    """
    head: dict[str, Any] = {
        "license": licence,
        "library_name": "benchbd",
        "pipeline_tag": "image-feature-extraction",
        "tags": ["benchbd", "backdoor", "self-supervised-learning"],
    }
    results = [_result(record) for record in records if record.metrics]
    if results:
        head["model-index"] = [{"name": facts["name"], "results": results}]
    attacked = any(each.attack_role is Role.METHOD and each.defense_role is Role.FLOOR for each in records)
    warning = "**This encoder was given a backdoor for research. Do not build on it.**" if attacked else ""
    told = [f"- {name}: {markdown.escaped(str(value))}" for name, value in facts.items() if name != "name"]
    parts = [
        f"# {markdown.escaped(str(facts['name']))}",
        warning,
        "An image encoder of benchbd, in safetensors.",
        "\n".join(told),
        f"```python\nimport benchbd\n\nencoder = benchbd.Encoder.load({str(facts['file'])!r})\n```",
        "`benchbd pull` fetches and verifies it; `benchbd inspect` asks detectors about it.",
    ]
    if records:
        parts += [
            "## Figures",
            _origin(len(records), tied),
            markdown.write(leaderboard.document(records, off_board=True)).strip(),
        ]
    return _page(head, parts)


def board_card(board: Board, licence: str, records: Sequence[Record], inspected: Sequence[Inspected]) -> str:
    """The card of a board with its records: the tables of ``benchbd leaderboard``."""
    head = {"license": licence, "pretty_name": f"{board.name}: {board.title}", "tags": ["benchbd", "backdoor"]}
    order = Order.of(board)
    parts = [
        f"# {markdown.escaped(board.name)}: {markdown.escaped(board.title)}",
        "A board of benchbd and its records; `benchbd pull` fetches and verifies them.",
        markdown.write(leaderboard.document(records, order=order, off_board=True)).strip() if records else "",
        *(
            f"## {axis.kind}\n\n{told}"
            for axis, judged in documents(inspected, order, True)
            if (told := markdown.write(judged).strip())
        ),
    ]
    return _page({**head, "viewer": False}, parts)


def _origin(records: int, tied: int) -> str:
    """What ties the figures of records to the weights."""
    if tied == records:
        return "The figures are those of the records, which contain the sha256 of this encoder's file."
    those = "the records" if not tied else f"{counted(records - tied, 'record')} of {records}"
    return (
        f"The figures are those of the records. Nothing ties {those} to these weights but the publisher's word: they "
        "contain no digest of them. Architecture and normalisation are the same where a record tells them."
    )


def _result(record: Record) -> dict[str, Any]:
    """The figures of a record in the form of the Hub's index of results."""
    figures = record.metrics.model_dump() if record.metrics else {}
    place = f"{record.pretrain} -> {record.task}:{record.target}, {record.evaluator}, seed {record.seed}"
    return {
        "task": {"type": "image-classification", "name": f"{record.attack} x {record.defense}"},
        "dataset": {"name": place, "type": record.task},
        "metrics": [
            {"type": name, "name": told, "value": figures[name]}
            for name, told in _FIGURES.items()
            if figures.get(name) is not None
        ],
    }


def _page(head: Mapping[str, Any], parts: Sequence[str]) -> str:
    """JSON values are YAML too."""
    lines = [f"{name}: {json.dumps(value)}" for name, value in head.items()]
    return "\n".join(["---", *lines, "---", "", "\n\n".join(filter(None, parts)), ""])
