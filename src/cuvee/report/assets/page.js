"use strict";
// Draws every figure in the theme in force, redraws when the theme changes, fits figures to paper, and picks out domains.
(() => {
  const { figures, dark } = JSON.parse(document.getElementById("data").textContent);
  const darkTheme = matchMedia("(prefers-color-scheme: dark)");
  const chosen = new Set();
  let paper = false;

  // Figures come in the light theme; every colour that has a dark counterpart is swapped wherever it stands.
  const recolour = (node) => {
    if (typeof node === "string") return dark[node] ?? node;
    if (Array.isArray(node)) return node.map(recolour);
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, recolour(value)]));
  };

  const draw = (id) => {
    const plot = document.getElementById(id);
    const { data, layout } = darkTheme.matches && !paper ? recolour(figures[id]) : figures[id];
    const faded = data.map((trace) =>
      trace.meta && chosen.size && !chosen.has(trace.meta) ? { ...trace, opacity: 0.12 } : trace);
    const width = plot.clientWidth;
    return Plotly.react(plot, structuredClone(faded), { ...structuredClone(layout), width },
      { displayModeBar: false, displaylogo: false, scrollZoom: false, doubleClick: false });
  };
  const drawAll = () => Promise.all(Object.keys(figures).map(draw));

  for (const button of document.querySelectorAll("button.domain")) {
    button.addEventListener("click", () => {
      const name = button.dataset.domain;
      if (!chosen.delete(name)) chosen.add(name);
      button.setAttribute("aria-pressed", String(chosen.has(name)));
      drawAll();
    });
  }
  darkTheme.addEventListener("change", drawAll);
  addEventListener("beforeprint", () => { paper = true; document.body.classList.add("paper"); drawAll(); });
  addEventListener("afterprint", () => { paper = false; document.body.classList.remove("paper"); drawAll(); });
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
  drawAll().then(() => { document.documentElement.dataset.drawn = String(Object.keys(figures).length); });
})();
