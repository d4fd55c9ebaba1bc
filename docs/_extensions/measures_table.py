"""The directive `measures`: the table of all measures, from the package.

Its content says of each measure, on a line `name: text`, when it misleads. The
build fails where a measure is missing there, or is none.
"""

from docutils import nodes
from docutils.statemachine import StringList
from sphinx.application import Sphinx
from sphinx.errors import ExtensionError
from sphinx.util.docutils import SphinxDirective

from keras_istar._src.measure.measures import MEASURES

_HEADINGS = ("Measure", "In reports", "What it is", "When it misleads")


class Measures(SphinxDirective):
    """A table with one row for each measure."""

    has_content = True

    def run(self) -> list[nodes.Node]:
        """Makes the table."""
        misleads = self._misleads()
        table = nodes.table(classes=["measures"])
        group = nodes.tgroup(cols=len(_HEADINGS))
        table += group
        for _ in _HEADINGS:
            group += nodes.colspec(colwidth=1)
        head = nodes.thead()
        group += head
        head += self._row(*_HEADINGS)
        body = nodes.tbody()
        group += body
        for name, measure in MEASURES.items():
            headings = ", ".join(c.heading for c in measure.columns.values())
            body += self._row(
                nodes.literal(text=name),
                headings,
                measure.meaning,
                misleads[name],
            )
        return [table]

    def _misleads(self):
        text = " ".join(line.strip() or "\n" for line in self.content)
        pairs = [
            paragraph.strip().partition(": ")[::2]
            for paragraph in text.split("\n")
        ]
        misleads = dict(pairs)
        if list(misleads) != list(MEASURES):
            raise ExtensionError(
                "The directive `measures` must say of each measure, in their "
                f"order, when it misleads. Received: {list(misleads)}, where "
                f"the package has {list(MEASURES)}"
            )
        return misleads

    def _row(self, *cells):
        row = nodes.row()
        for cell in cells:
            entry = nodes.entry()
            row += entry
            if isinstance(cell, str):
                self._parse(cell, entry)
            else:
                paragraph = nodes.paragraph()
                paragraph += cell
                entry += paragraph
        return row

    def _parse(self, text, entry):
        self.state.nested_parse(StringList([text]), self.content_offset, entry)


def setup(app: Sphinx) -> dict:
    """Registers the extension."""
    app.add_directive("measures", Measures)
    return {"parallel_read_safe": True}
