"""Typical words in column names, in English, German, French and Spanish."""

from __future__ import annotations

import re
import unicodedata
from fnmatch import fnmatchcase

# Role → words without accents, best sign first. A slash separates translations. A word of more than three letters may
# be the beginning of a longer word; a word with a star may be its end.
_WORDS = {
    "user": "user/nutzer/benutzer/utilisateur/usuario customer/kunde/client/cliente member/mitglied/membre/miembro "
    "buyer/kaufer/kaeufer/acheteur/comprador shopper/besteller visitor/besucher/visiteur/visitante "
    "reader/leser/lecteur/lector reviewer player/spieler/joueur/jugador account/konto/compte/cuenta "
    "person/personne/persona uid session/sitzung/sesion steamid",
    "item": "item/element product/produkt/produit/producto sku article/artikel/articulo/ware asin "
    "movie/film/pelicula book/buch/livre/libro track song/lied/chanson/cancion artist/kunstler/kuenstler "
    "game/spiel/jeu/juego app isbn stock business recipe/rezept/recette/receta",
    "timestamp": "timestamp/zeitstempel/horodatage datetime time/zeitpunkt/zeit/*zeit "
    "date/datum/*datum/fecha at/am on when/wann ts",
    "rating": "rating/bewertung/*bewertung/evaluation/calificacion/valoracion stars/sterne/etoiles/estrellas "
    "score/punkte/note/nota/puntuacion overall",
    "title": "title/titel/*titel/titre/titulo name/*name/nom/nombre label/bezeichnung/*bezeichnung/libelle "
    "description/beschreibung/descripcion",
    "quantity": "quantity/menge/quantite/cantidad qty anzahl units/stuck/stueck/unites/unidades pieces",
    "kind": "kind/type/typ/tipo/*art event/ereignis transaction/transaktion/transaccion document/beleg "
    "action/aktion/accion/vorgang status/statut/estado",
    "id": "id sku asin isbn code/kode/codigo key/schlussel number/nummer/*nummer/numero nr/no",
}
_RETURNS = "return retour ruckgabe rueckgabe refund erstattung rembours devol storno cancel annul anul"
"""Beginnings of words for returns and cancelled orders."""
_EVENTS = {
    "purchase": "purchase buy bought order transaction sale sold checkout kauf verkauf bestell achat vente commande "
    "compra venta pedido",
    "other": "view pageview detail click impression visit watch addto cart basket wish favo bookmark like save "
    "ansicht klick besuch warenkorb merk vue visite panier vista visita carrito cesta",
    "undone": "remove unlike entfern supprim elimin",
}
"""Beginnings of words for kinds of interactions: purchases, others, and those that take something back."""
_TOPICS = {
    "movies": "movie film pelicula",
    "books": "book buch livre libro isbn",
    "music": "artist track song lied chanson cancion kunstler",
}


def name_fit(role: str, column: str) -> float:
    """Return how well a column name fits a role: 0 for no match, otherwise from 0.5 to 1 (the best word)."""
    words, parts = _WORDS[role].split(), _parts(column)
    fits = [n for n, word in enumerate(words) if any(_fits(p, w) for p in parts for w in word.split("/"))]
    return 1 - fits[0] / (2 * len(words)) if fits else 0.0


def means_return(value: str) -> bool:
    """Return whether a kind of lines, such as `Retoure`, is named like a return or a cancelled order."""
    return any(part.startswith(word) for part in _parts(value) for word in _RETURNS.split())


def event(value: str) -> str | None:
    """Return what a kind of lines is named like: `purchase`, `other` (a view or a cart), `undone`, or None."""
    parts = _parts(value)
    for kind in ("undone", "other", "purchase"):  # order_detail_view and remove_from_cart are no purchases
        if any(part.startswith(word) for part in parts for word in _EVENTS[kind].split()):
            return kind
    return None


def topic(column: str) -> str | None:
    """Return the domain of prompts that the name of an item column suggests, or None."""
    parts = _parts(column)
    topics = (name for name, words in _TOPICS.items() if any(_fits(p, w) for p in parts for w in words.split()))
    return next(topics, None)


def _fits(part: str, word: str) -> bool:
    return part == word or (len(word) > 3 and fnmatchcase(part, word if word[0] == "*" else f"{word}*"))


def _parts(column: str) -> list[str]:
    """Return the words of a name such as `orderDate` or `order_date`, in lower case and without accents."""
    plain = "".join(c for c in unicodedata.normalize("NFKD", column) if not unicodedata.combining(c))
    return [part.lower() for part in re.findall(r"[A-Z]?[^\W\d_A-Z]+|[A-Z]+", plain)]
