// Elements of a page, and what a page can do with files and the clipboard.

/** An element with properties (`on…` are listeners, `data-…` and `aria-…` attributes) and children. */
function make(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (name in element && !name.includes("-")) element[name] = value;
    else element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null));
  return element;
}

const span = (className, ...children) => make("span", { className }, ...children);

function button(label, action, properties = {}) {
  return make("button", { type: "button", onclick: action, ...properties }, label);
}

/** Replaces children; the focused control keeps the focus. */
function refill(parent, ...children) {
  const focused = parent.getRootNode().activeElement;
  const index = parent.contains(focused) ? [...parent.querySelectorAll("button, input, select")].indexOf(focused) : -1;
  parent.replaceChildren(...children.filter((child) => child !== null));
  if (index < 0) return;
  const controls = [...parent.querySelectorAll("button, input, select")];
  const hasSameLabel = (control) => control.textContent === focused.textContent;
  (controls.includes(focused) ? focused : controls.find(hasSameLabel) ?? controls[index])?.focus();
}

/** Buttons of which one is pressed; `options` are values with their label and what it does. */
function choice(name, options, chosen, choose) {
  return make("span", { className: "choice", role: "group", "aria-label": name },
    ...Object.entries(options).map(([value, [label, title]]) =>
      button(label, () => choose(value), { title, "aria-pressed": String(value === chosen), "data-value": value })));
}

async function copyText(text, copyButton) {
  const label = copyButton.textContent;
  await navigator.clipboard.writeText(text);
  copyButton.textContent = "Copied";
  setTimeout(() => (copyButton.textContent = label), 1500);
}

function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function read(file, method) {
  return new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result);
    reader.onerror = () => reject(reader.error);
    reader[method](file);
  });
}
