"""Table of the auction: every candidate with its costs, and the reason why it lost."""

from __future__ import annotations

from dataclasses import dataclass

from edgepack.ledger import CandidateDocument
from edgepack.report.documents import Report
from edgepack.report.figures import (
    format_bytes,
    format_decibel,
    format_number,
    format_percent,
    format_seconds,
)

HEADINGS = ("candidate", "speed", "size", "memory", "quality", "result")
_NONE = "–"


@dataclass(frozen=True)
class Row:
    """Candidate of an auction.

    Attributes:
        name: of the candidate.
        figures: speed against fp32, size, memory and quality; a dash for an unknown one.
        result: "wins", or the reason why it lost.
        won: True for the winner.
    """

    name: str
    figures: tuple[str, str, str, str]
    result: str
    won: bool


@dataclass(frozen=True)
class AuctionTable:
    """Candidates of an auction, the winner first.

    Attributes:
        rows: the candidates.
        caption: objective, noise and cost of the auction.
        headings: of the columns.
    """

    rows: tuple[Row, ...]
    caption: str
    headings: tuple[str, ...]


def tabulate_auction(report: Report) -> AuctionTable | None:
    """Return the table of a report; None if the build held no auction."""
    auction = report.get("auction")
    if auction is None:
        return None
    rows = [_format_row(entry, auction["winner"]) for entry in auction["candidates"]]
    # The winner, then the others from fast to slow; `sorted` keeps those that did not run last.
    speeds = {entry["name"]: entry["ratio"] or 0.0 for entry in auction["candidates"]}
    rows.sort(key=lambda row: (not row.won, -speeds[row.name]))
    cost = format_seconds(auction["seconds"])
    if "share" in auction:
        cost += f", {format_percent(auction['share'], 0)} of the build"
    compared, headings = "speed against fp32 in the profile's engine, in turns", HEADINGS
    if auction["unit"] == "instructions":
        compared = "instructions on emulated CPUs, times fewer than fp32's; a count is not a time"
        headings = ("candidate", "fewer", *HEADINGS[2:])
    caption = (
        f"By {auction['objective']}; {compared}; "
        f"noise {format_percent(auction['noise'], 0)}. It took {cost}."
    )
    return AuctionTable(tuple(rows), caption, headings)


def _format_row(entry: CandidateDocument, winner: str) -> Row:
    speed = _NONE
    if entry["ratio"] is not None:
        speed = f"{entry['ratio']:.2f}×"
    memory = format_bytes(entry["peak_rss_bytes"]) or _NONE
    won = entry["name"] == winner
    figures = (speed, format_bytes(entry["bytes"]), memory, _format_quality(entry))
    return Row(entry["name"], figures, entry["reason"] or "wins", won)


def _format_quality(entry: CandidateDocument) -> str:
    if not entry["judged"]:
        return _NONE
    quality = "exact"
    if entry["snr_db"] is not None:
        quality = format_decibel(entry["snr_db"])
    if entry["metric_points"] is None:
        return quality
    return f"{quality}, {format_number(entry['metric_points'])} %"
