// Elements of a page, made of text and other elements, never of markup.

/** An element with these properties and children, which are elements or strings. */
export function make(tag, properties = {}, ...children) {
  const element = Object.assign(document.createElement(tag), properties);
  element.append(...children);
  return element;
}

/** A button that calls `does` when it is pressed. */
export function makeButton(text, does) {
  const button = make("button", { type: "button" }, text);
  button.addEventListener("click", does);
  return button;
}
