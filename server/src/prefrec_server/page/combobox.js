// An input with a list of matches, after the combobox pattern of the ARIA practices.

import { byId, element } from "./dom.js";
import { say } from "./calls.js";

const SEARCH_AFTER_MS = 120;

// `search(text, signal)` returns matches as objects with `title` and, if it is not a title, `kind`; `choose(match)`
// takes one; `removeLast()` is called for Backspace in an empty input.
export function combobox(name, { search, choose, removeLast }) {
  const input = byId(`${name}-input`);
  const list = byId(`${name}-options`);
  let found = [];
  let active = -1;
  let timer = 0;
  let running = null;

  function close() {
    clearTimeout(timer);
    running?.abort();
    list.hidden = true;
    active = -1;
    input.setAttribute("aria-expanded", "false");
    input.removeAttribute("aria-activedescendant");
  }

  function mark(index) {
    active = index;
    [...list.children].forEach((option, i) => option.setAttribute("aria-selected", String(i === index)));
    if (index < 0) return input.removeAttribute("aria-activedescendant");
    input.setAttribute("aria-activedescendant", list.children[index].id);
    list.children[index].scrollIntoView({ block: "nearest" });
  }

  function option(match, i) {
    const kind = match.kind ? [element("small", { text: ` ${match.kind}` })] : [];
    const made = element("li", { role: "option", id: `${name}-option-${i}` }, match.title, ...kind);
    made.addEventListener("mousedown", (event) => event.preventDefault());
    made.addEventListener("click", () => take(i));
    return made;
  }

  function show(matches) {
    found = matches;
    list.replaceChildren(...found.map(option));
    list.hidden = found.length === 0;
    input.setAttribute("aria-expanded", String(found.length > 0));
    if (found.length > 0) return mark(0);
    mark(-1);
    say(`Nothing matches “${input.value}”.`);
  }

  async function look() {
    running?.abort();
    running = new AbortController();
    try {
      show(await search(input.value, running.signal));
    } catch (error) {
      if (error.name !== "AbortError") say(error.message, true);
    }
  }

  function take(index) {
    input.value = "";
    close();
    choose(found[index]);
    input.focus();
  }

  // Enter before the matches have come takes the first of them.
  async function lookAndTake() {
    clearTimeout(timer);
    await look();
    if (!list.hidden) take(0);
  }

  input.addEventListener("input", () => {
    clearTimeout(timer);
    if (input.value.trim() === "") return close();
    timer = setTimeout(look, SEARCH_AFTER_MS);
  });
  input.addEventListener("blur", close);
  input.addEventListener("keydown", (event) => {
    const open = !list.hidden;
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      if (!open) return look();
      const step = event.key === "ArrowDown" ? 1 : -1;
      mark((active + step + found.length) % found.length);
    } else if (event.key === "Enter" && (open || input.value.trim() !== "")) {
      event.preventDefault(); // with text in the field, Enter does not submit the form
      if (open && active >= 0) take(active);
      else lookAndTake();
    } else if (event.key === "Escape") {
      close();
    } else if (event.key === "Backspace" && input.value === "") {
      removeLast();
    }
  });
}
