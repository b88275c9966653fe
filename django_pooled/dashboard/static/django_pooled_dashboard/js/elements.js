/* Small helpers for the document. */
"use strict";

/** Set a text, unless the element has it already. */
Pools.text = (element, text) => {
  if (element.textContent !== text) element.textContent = text;
};

/** A row of a table; cells are texts or elements. */
Pools.row = (cells, tag = "td") => {
  const row = document.createElement("tr");
  cells.forEach((content, i) => {
    const cell = document.createElement(i ? tag : "th");
    if (tag === "th") cell.scope = "col";
    else if (!i) cell.scope = "row";
    cell.append(content);
    row.append(cell);
  });
  return row;
};

/** A new element with a class and content. */
Pools.make = (tag, className, ...content) => {
  const element = document.createElement(tag);
  if (className) element.className = className;
  element.append(...content);
  return element;
};

/** Replace a table's or list's content only if it differs, so that a selection stays. */
Pools.refill = (parent, children) => {
  const box = document.createElement(parent.tagName);
  box.append(...children);
  if (box.innerHTML !== parent.innerHTML) parent.replaceChildren(...box.childNodes);
};
