// Elements and numbers of the page. Titles come from data, so they are only set as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function element(tag, { text, className, ...attributes } = {}, ...children) {
  const made = document.createElement(tag);
  if (text !== undefined) made.textContent = text;
  if (className) made.className = className;
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

export const number = (value, digits) => value.toFixed(digits).replace("-", "−");
export const signed = (value) => (value >= 0 ? "+" : "") + number(value, Math.abs(value) < 0.1 ? 4 : 2);
export const ids = (items) => items.map(({ item_id }) => ({ item_id }));

export function scrollToShow(section) {
  const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
  section.scrollIntoView({ block: "nearest", behavior: still ? "auto" : "smooth" });
}
