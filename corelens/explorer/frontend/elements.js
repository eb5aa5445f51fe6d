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

/** Other children; what had the keyboard keeps it. */
function refill(parent, ...children) {
  const focused = parent.getRootNode().activeElement;
  const at = parent.contains(focused) ? [...parent.querySelectorAll("button, input, select")].indexOf(focused) : -1;
  parent.replaceChildren(...children.filter((child) => child !== null));
  if (at < 0) return;
  const controls = [...parent.querySelectorAll("button, input, select")];
  (controls.find((one) => one.textContent === focused.textContent) ?? controls[at])?.focus();
}

/** Buttons of which one is chosen. */
function choice(name, options, chosen, choose) {
  return make("span", { className: "choice", role: "group", "aria-label": name },
    ...Object.entries(options).map(([value, label]) =>
      button(label, () => choose(value), { "aria-pressed": String(value === chosen), "data-value": value })));
}

async function copyText(text, by) {
  const label = by.textContent;
  await navigator.clipboard.writeText(text);
  by.textContent = "Copied";
  setTimeout(() => (by.textContent = label), 1500);
}

function save(name, content, type) {
  const url = URL.createObjectURL(content instanceof Blob ? content : new Blob([content], { type }));
  make("a", { href: url, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(url), 1000);
}

function read(file, how) {
  return new Promise((done, failed) => {
    const reader = new FileReader();
    reader.onload = () => done(reader.result);
    reader.onerror = () => failed(reader.error);
    reader[how](file);
  });
}
