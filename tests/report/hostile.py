"""Text that would like to be more than text: a folder of documents for the whole pipeline, and strings for the page."""

from pathlib import Path

from nlrewrite.seeds import generator

ATTACKS = (
    "</script><script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "'><svg/onload=alert(1)>",
    "<!-- <style>*{display:none}</style>",
    "</span></td></table></main>",
    "&lt;b&gt; &amp;amp; &#60;i&#62;",
    "javascript:alert(1) https://example.org/x?a=1&b=2",
    "\u202egnp.exe\u202c \u200b\x1b[31m \x07",
    "naïve 日本語 🙂 <|endoftext|>",
)
STEMS = ("la", "mo", "ri", "ten", "gar", "sol", "ve", "pa", "nik", "dor", "el", "hu")
DOCUMENTS = 160


def write_folder(folder: Path) -> None:
    """Documents of made-up words, an attack in every sentence; some have a name that is an attack itself."""
    for number in range(DOCUMENTS):
        draws = generator(0, "hostile", number)
        sentences = []
        for _ in range(12):
            words = ["".join(draws.choice(STEMS, draws.integers(1, 4))) for _ in range(7)]
            words.insert(int(draws.integers(0, 8)), ATTACKS[int(draws.integers(len(ATTACKS)))])
            sentences.append(" ".join(words) + ".")
        name = f"\"><img onerror='alert({number})'>" if number % 2 else f"plain {number}"
        (folder / f"{name}.txt").write_text("\n".join(sentences), encoding="utf-8")
