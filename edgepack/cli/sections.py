"""Commands whose `--help` lists the options under headings."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import click


class SectionedCommand(click.Command):
    """Command with sections of options.

    Attributes:
        sections: names of the parameters under each heading; all others are under the last one.
    """

    def __init__(self, *args: Any, sections: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        """Take the sections beside the arguments of `click.Command`."""
        super().__init__(*args, **kwargs)
        self.sections = sections

    def list_sections(self, ctx: click.Context) -> Iterator[tuple[str, list[click.Parameter]]]:
        """Yield each heading with its options, in the order of the headings."""
        rest = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option):
                rest[parameter.name] = parameter
        last = list(self.sections)[-1]
        for heading, names in self.sections.items():
            members: list[click.Parameter] = [rest.pop(name) for name in names]
            if heading == last:
                members += rest.values()
            yield heading, members

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options of each section below its heading."""
        for heading, options in self.list_sections(ctx):
            records = []
            for option in options:
                record = option.get_help_record(ctx)
                if record is not None:
                    records.append(record)
            with formatter.section(heading):
                formatter.write_dl(records)
