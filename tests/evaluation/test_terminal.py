import io

import pytest
from rich.console import Console

from erasus_pl.evaluation.terminal import show


def _console(width=120, encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Console(file=stream, width=width), stream


def _printed(evidence, **options):
    console, stream = _console(**options)
    show(evidence, console)
    stream.flush()
    return stream.buffer.getvalue().decode(stream.encoding)


@pytest.mark.parametrize("width", [150, 80, 40, 20])
def test_the_terminal_fits_every_width(make_evidence, width):
    text = _printed(make_evidence(), width=width)
    assert max(map(len, text.splitlines())) <= width
    assert ("[0.470, 0.550]" in text) == (width == 150)
    assert "Forgotten" in text


def test_the_terminal_takes_user_text_literally_in_any_encoding(make_evidence):
    text = _printed(make_evidence(text="[bold]ł[/bold]"), encoding="ascii")
    assert "Headline [bold]?[/bold]" in text
    assert "+ Forgotten" in text
