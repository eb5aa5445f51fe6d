// Formulas become MathML, which browsers draw by themselves. temml.min.js is Temml 0.13.5 (MIT licence, temml.org).
for (const formula of document.querySelectorAll(".arithmatex")) {
  const tex = formula.textContent.trim();
  temml.render(tex.slice(2, -2), formula, { displayMode: tex.startsWith("\\[") });
}
