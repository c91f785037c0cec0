"""The frame of every page."""

import pytest

from adtr.report.html import document, facts, printable, table, text


def test_text_shows_what_it_is_given() -> None:
    assert text('<a href="x">&\'') == "&lt;a href=&quot;x&quot;&gt;&amp;&#x27;"
    assert text("日本 ü") == "日本 ü"


@pytest.mark.parametrize(
    ("raw", "shown"), [("a\x00b\n", "a\\x00b\\n"), ("gr\udcfcn", "gr\\udcfcn"), ("gnp.\u202eexe", "gnp.\\u202eexe")]
)
def test_what_cannot_be_printed_is_written_out(raw: str, shown: str) -> None:
    assert printable(raw) == shown
    printable(raw).encode("utf-8")


def test_a_page_has_its_parts_in_order() -> None:
    sections = {"One two": "<p>1</p>", "Three": table("<tr></tr>", "<tr></tr>", label="T", caption="<c>")}
    page = document(
        title="<t>", lead="<l>", summary={"<n>": "<v>"}, sections=sections, style=".x {}", policy="p 'none'"
    )
    order = [
        "Content-Security-Policy",
        "<title>&lt;t&gt;",
        ".x {}",
        "<h1>",
        "&lt;l&gt;",
        "&lt;n&gt;",
        'href="#one-two"',
    ]
    places = [page.index(part) for part in [*order, '<h2 id="one-two">', "<p>1</p>", '<h2 id="three">', "&lt;c&gt;"]]
    assert places == sorted(places)
    assert 'content="p &#x27;none&#x27;"' in page
    assert "Content-Security-Policy" not in document(title="t", lead="l", summary={}, sections={})
    assert facts({"a": "b"}) in document(title="t", lead="l", summary={"a": "b"}, sections={})
