"""`stillmotion concepts [WORD]`."""

from __future__ import annotations

from pathlib import Path

import click

from stillmotion.cli.output import echo
from stillmotion.errors import UnknownFile
from stillmotion.request.concepts import Concept, Concepts
from stillmotion.request.installed_models import bundled_folder
from stillmotion.request.model_card import ModelCard


@click.command()
@click.argument("words", metavar="[WORD]", nargs=-1)
@click.option(
    "--base", type=click.Path(path_type=Path), help="Folder of another model [default: the bundled one]."
)
@click.option("--styles", is_flag=True, help="Only the styles.")
def concepts(words: tuple[str, ...], base: Path | None, styles: bool) -> None:
    """List what a small model knows, or search it for WORD.

    The bundled model has learned some hundred things; prompts are best made of them and one of its styles.
    Things marked with * were seen moving in the training.
    """
    folder = base or bundled_folder()
    known = ModelCard.read(folder).concepts
    if known is None:
        raise UnknownFile(f"{folder} has no list of concepts; models with one name it in stillmotion.json.")
    if styles:
        echo("\n".join(known.styles))
    elif words:
        _show_found(known, " ".join(words))
    else:
        _show_all(known)


def _show_found(known: Concepts, text: str) -> None:
    found = known.search(text, 30)
    if not found:
        raise UnknownFile(
            f"The model knows nothing like {text!r}; `stillmotion concepts` lists what it knows."
        )
    for concept in found:
        keywords = f"  ({', '.join(concept.keywords)})" if concept.keywords else ""
        echo(f"{_marked(concept)}{keywords}")


def _show_all(known: Concepts) -> None:
    groups: dict[str, list[str]] = {}
    for concept in known:
        groups.setdefault(concept.group or "other", []).append(_marked(concept))
    for group, names in groups.items():
        echo(click.wrap_text(f"{group}: {', '.join(sorted(names))}", 100, subsequent_indent="  ") + "\n")
    echo(f"{len(known)} concepts; styles: {', '.join(known.styles)}")


def _marked(concept: Concept) -> str:
    return f"{concept.name}*" if concept.animated else concept.name
