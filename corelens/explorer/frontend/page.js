// Gives the widget on a page what notebooks give it: a model whose state is synchronised with Python.
//
// The address holds the state, so that reloading it, or opening it in another tab, shows the same.

import explorer from "./explorer.js";

const LINK = "#view=";

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
    fetch("about").then((answer) => answer.json()),
    fetch("explorer.js").then((answer) => answer.text()),
    fetch("explorer.css").then((answer) => answer.text()),
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
    running?.abort(); // nobody waits for the earlier view any more, and the model stops computing it
    const own = (running = new AbortController());
    const uploads = Object.fromEntries(Object.entries(values.uploads).filter(([key]) => !sent.has(key)));
    history.replaceState(null, "", LINK + encodeURIComponent(JSON.stringify(values.state)));
    try {
      const answer = await fetch("view", {
        method: "POST",
        body: JSON.stringify({ state: values.state, uploads, prompt: values.prompt?.key }),
        signal: own.signal,
      });
      const shown = await answer.json();
      if (own !== running) return;
      if (!shown.error) Object.keys(uploads).forEach((key) => sent.add(key));
      if ("prompt" in shown) put("prompt", shown.prompt);
      if (shown.view) put("view", shown.view);
      put("error", shown.error ?? "");
    } catch (cause) {
      if (cause.name !== "AbortError") put("error", "corelens does not answer: is it still running?");
    }
  }

  const model = {
    get: (name) => values[name],
    set: put,
    save_changes: show,
    on: (event, listener) => (listeners[event] ??= []).push(listener),
    off: (event, listener) => {
      listeners[event] = (listeners[event] ?? []).filter((one) => one !== listener);
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
