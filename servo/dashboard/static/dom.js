// Builds elements. All text goes in as text nodes, so nothing that a server sends is read as HTML.

const SVG = "http://www.w3.org/2000/svg";

export function byId(id) {
  return document.getElementById(id);
}

/**
 * Make an element.
 *
 * name        its tag
 * attributes  its attributes by name; null, undefined and false leave one out
 * children    elements, and texts
 */
export function element(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === true) made.setAttribute(key, "");
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(key, value);
  }
  made.append(...children.filter((child) => child !== null && child !== ""));
  return made;
}

/** Make an icon, which screen readers skip: the text beside it says the same. */
export function icon(name) {
  const svg = document.createElementNS(SVG, "svg");
  const use = document.createElementNS(SVG, "use");
  svg.setAttribute("class", "icon");
  svg.setAttribute("aria-hidden", "true");
  svg.setAttribute("focusable", "false");
  use.setAttribute("href", `#i-${name}`);
  svg.append(use);
  return svg;
}

/** Set an element's text if it has changed: a selection in unchanged text survives. */
export function setText(target, text) {
  if (target.textContent !== text) target.textContent = text;
}

/** Make these elements the children, and move none without need: the focus would be lost. */
export function place(target, children) {
  const kept = new Set(children);
  for (const child of [...target.children]) {
    if (!kept.has(child)) child.remove();
  }
  children.forEach((child, index) => {
    if (target.children[index] !== child) target.insertBefore(child, target.children[index] ?? null);
  });
}

/** Replace an element's children if `key` has changed since the last call for this element. */
export function fill(target, key, make) {
  if (target.dataset.key === key) return;
  target.dataset.key = key;
  target.replaceChildren(...make().filter((child) => child !== null));
}
