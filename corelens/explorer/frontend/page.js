// The widget on a page: a model whose state is synchronised with Python, as notebooks provide it.
//
// The address holds the state, so that reloading it, or opening it in another tab, shows the same.

import explorer from "./explorer.js";

const LINK = "#view=";
const ENDED = "corelens does not answer: it has ended, and this link with it. What was shown last can still be saved.";

function stateOfLink() {
  if (!location.hash.startsWith(LINK)) return null;
  try {
    return JSON.parse(decodeURIComponent(location.hash.slice(LINK.length)));
  } catch {
    return null; // a link that was cut short
  }
}

async function start() {
  const [about, source, style] = await Promise.all([
    fetch("about").then((response) => response.json()),
    fetch("explorer.js").then((response) => response.text()),
    fetch("explorer.css").then((response) => response.text()),
  ]);
  const values = {
    about, state: stateOfLink() ?? about.first, uploads: {}, prompt: null, view: {}, error: "", linked: true,
    _esm: source, _css: style,
  };
  const listeners = {};
  const sent = new Set(); // keys of pictures that Python has
  let running = null;

  function put(name, value) {
    values[name] = value;
    for (const listener of listeners[`change:${name}`] ?? []) listener();
  }

  async function show() {
    running?.abort(); // the earlier view is not needed any more, and the model stops computing it
    const request = (running = new AbortController());
    const uploads = Object.fromEntries(Object.entries(values.uploads).filter(([key]) => !sent.has(key)));
    history.replaceState(null, "", LINK + encodeURIComponent(JSON.stringify(values.state)));
    try {
      const response = await fetch("view", {
        method: "POST",
        body: JSON.stringify({ state: values.state, uploads, prompt: values.prompt?.key }),
        signal: request.signal,
      });
      const content = await response.json();
      if (request !== running) return;
      if (!content.error) Object.keys(uploads).forEach((key) => sent.add(key));
      if ("prompt" in content) put("prompt", content.prompt);
      if (content.view) put("view", content.view);
      values.ended = false;
      put("error", content.error ?? "");
    } catch (cause) {
      if (cause.name === "AbortError") return;
      values.ended = true;
      put("error", ENDED);
    }
  }

  const model = {
    get: (name) => values[name],
    set: put,
    save_changes: show,
    on: (event, listener) => (listeners[event] ??= []).push(listener),
    off: (event, listener) => {
      listeners[event] = (listeners[event] ?? []).filter((other) => other !== listener);
    },
  };
  explorer.render({ model, el: document.getElementById("explorer") });
  window.addEventListener("hashchange", () => {
    const state = stateOfLink();
    if (state) {
      put("state", state);
      show();
    }
  });
  show();
}

start();
