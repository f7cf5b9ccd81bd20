"use strict";
// Draws every visible figure in the theme in force, and works the controls: domains, tabs, lists, columns, order, saving.
(() => {
  const { figures, layout: common, dark, rest = {}, other } = JSON.parse(document.getElementById("data").textContent);
  const darkTheme = matchMedia("(prefers-color-scheme: dark)");
  const all = (selector, root = document) => [...root.querySelectorAll(selector)];
  for (const figure of Object.values(figures)) {
    figure.layout = { ...common, ...figure.layout };
    figure.data.forEach((trace, i) => { trace.x ??= figure.data[i - 1]?.x; });
  }
  const chosen = new Set();
  let paper = false;
  let grouped = Object.keys(rest).length > 0;

  // Figures come in the light theme; every colour that has a dark counterpart is swapped wherever it stands.
  const recolour = (node) => {
    if (typeof node === "string") return node.replace(/#[0-9a-f]{6}/g, (colour) => dark[colour] ?? colour);
    if (Array.isArray(node)) return node.map(recolour);
    if (node === null || typeof node !== "object") return node;
    return Object.fromEntries(Object.entries(node).map(([key, value]) => [key, recolour(value)]));
  };

  const sum = (traces, name) => {
    const y = traces[0].y.map((_, i) => traces.reduce((total, trace) => total + trace.y[i], 0));
    const look = traces[0].type === "bar" ? { marker: { ...traces[0].marker, color: other } } : { fillcolor: other };
    return { ...traces[0], ...look, y, name, meta: name };
  };
  // Sums the domains without a colour of their own, where the first of them stands.
  const group = (data) => {
    let result = data;
    for (const [name, members] of Object.entries(rest)) {
      for (const type of ["scatter", "bar"]) {
        const found = result.filter((trace) => (trace.type ?? "scatter") === type && members.includes(trace.meta));
        if (!found.length) continue;
        const total = sum(found, name);
        result = result.flatMap((trace) => trace === found[0] ? [total] : found.includes(trace) ? [] : [trace]);
      }
    }
    return result;
  };

  // The chosen domains from zero, each with a dashed line at its natural share.
  const fromZero = ({ data, layout }) => {
    const lines = data.filter((trace) => trace.stackgroup && chosen.has(trace.meta));
    const shapes = lines.map((trace) => ({
      type: "line", xref: "x domain", x0: 0, x1: 1, y0: layout.meta.natural[trace.meta], y1: layout.meta.natural[trace.meta],
      line: { color: trace.fillcolor, width: 1.5, dash: "dash" },
    }));
    const top = Math.max(...lines.flatMap((trace) => trace.y), ...shapes.map((shape) => shape.y0));
    const bare = lines.map(({ stackgroup, fillpattern, ...trace }) =>
      ({ ...trace, fill: "none", line: { shape: "hv", width: 2.5, color: trace.fillcolor } }));
    const ends = bare.map((trace) => ({
      x: 1, xref: "x domain", xanchor: "left", xshift: 3, y: trace.y.at(-1), showarrow: false, font: { size: 11 }, text: trace.name,
    }));
    const { xaxis2, ...kept } = layout;
    return { data: bare, layout: { ...kept, shapes, annotations: ends, xaxis: { ...layout.xaxis, domain: [0, 1] }, yaxis: { ...layout.yaxis, range: [0, top * 1.1], showgrid: true } } };
  };

  const look = (id) => {
    const figure = figures[id];
    const stacked = figure.layout.meta?.natural;
    if (stacked && chosen.size) return fromZero(figure);
    const data = stacked && grouped ? group(figure.data) : figure.data;
    const faded = data.map((trace) =>
      trace.meta && chosen.size && !chosen.has(trace.meta) ? { ...trace, opacity: 0.12 } : trace);
    return { data: faded, layout: figure.layout };
  };

  const draw = (id) => {
    const plot = document.getElementById(id);
    if (!plot.offsetParent) return null; // hidden
    const { data, layout } = darkTheme.matches && !paper ? recolour(look(id)) : look(id);
    return Plotly.react(plot, structuredClone(data), { ...structuredClone(layout), width: plot.clientWidth },
      { displayModeBar: false, displaylogo: false, scrollZoom: false, doubleClick: false });
  };
  const swatches = all(".swatch").map((swatch) => [swatch, swatch.dataset.colour]);
  const drawAll = () => {
    for (const [swatch, colour] of swatches) swatch.style.backgroundColor = darkTheme.matches && !paper ? recolour(colour) : colour;
    const drawn = Object.keys(figures).map(draw).filter((one) => one);
    return Promise.all(drawn).then(() => { document.documentElement.dataset.drawn = String(drawn.length); });
  };

  const press = (button, on) => button.setAttribute("aria-pressed", String(on));
  const isPressed = (button) => button.getAttribute("aria-pressed") === "true";

  for (const button of all("button.domain")) {
    button.addEventListener("click", () => {
      const name = button.dataset.domain;
      if (!chosen.delete(name)) chosen.add(name);
      all("button.domain").filter((one) => one.dataset.domain === name).forEach((one) => press(one, chosen.has(name)));
      drawAll();
    });
  }
  const ungroup = document.getElementById("ungroup");
  if (ungroup && grouped) {
    ungroup.hidden = false;
    ungroup.addEventListener("click", () => { grouped = !grouped; press(ungroup, !grouped); drawAll(); });
  }

  for (const tabs of all(".tabs")) {
    const buttons = all("button", tabs);
    const show = (wanted) => {
      for (const button of buttons) {
        press(button, button === wanted);
        document.getElementById(`tab-${button.dataset.tab}`).hidden = button !== wanted;
      }
    };
    buttons.forEach((button) => button.addEventListener("click", () => { show(button); drawAll(); }));
    show(buttons[0]);
  }

  // Lists show their first items until a reader asks for all, or searches.
  for (const list of all("[data-list]")) {
    const most = Number(list.dataset.list);
    const search = document.querySelector(`[data-search="${list.id}"]`);
    const more = all("[data-all]").find((button) => button.dataset.all.split(" ").includes(list.id));
    const show = () => {
      const wanted = search?.value.trim().toLowerCase() ?? "";
      const open = wanted || (more && isPressed(more));
      let shown = 0;
      for (const item of list.children) {
        const hit = item.dataset.name.toLowerCase().includes(wanted);
        item.hidden = !hit || !(open || shown < most || !more);
        shown += hit ? 1 : 0;
      }
    };
    search?.addEventListener("input", () => { show(); drawAll(); });
    if (more) press(more, isPressed(more));
    more?.addEventListener("click", () => { press(more, list.dataset.open !== "true"); list.dataset.open = String(isPressed(more)); show(); drawAll(); });
    list.addEventListener("reordered", show);
    show();
  }
  for (const search of all('[data-search="domain-buttons"]')) {
    search.addEventListener("input", () => {
      const wanted = search.value.trim().toLowerCase();
      for (const button of all("button.domain")) button.hidden = !button.dataset.domain.toLowerCase().includes(wanted);
    });
  }

  const reorder = (list, key, falling) => {
    const compare = (a, b) => typeof a === "string" ? a.localeCompare(b) : a - b;
    const sorted = [...list.children].map((item) => [key(item), item]);
    sorted.sort(([a], [b]) => (falling ? -1 : 1) * compare(a, b));
    list.append(...sorted.map(([, item]) => item));
    list.dispatchEvent(new Event("reordered"));
  };
  for (const select of all("[data-sort]")) {
    select.addEventListener("change", () => {
      const by = select.value;
      reorder(document.getElementById(select.dataset.sort), (item) => by === "name" ? item.dataset.name : Number(item.dataset[by]));
      drawAll();
    });
  }
  const valueOf = (cell) => {
    const text = cell.textContent.replace("−", "-");
    const number = Number(cell.dataset.value ?? Number.parseFloat(text));
    return Number.isNaN(number) ? Infinity : number;
  };
  for (const table of all("table")) {
    const body = table.tBodies[0];
    if (body.rows.length < 2) continue;
    all("thead th", table).forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.className = "sorter";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => {
        const falling = head.getAttribute("aria-sort") === "ascending";
        all("thead th", table).forEach((one) => one.removeAttribute("aria-sort"));
        head.setAttribute("aria-sort", falling ? "descending" : "ascending");
        reorder(body, (row) => valueOf(row.cells[column + 1]), falling);
      });
    });
  }
  for (const table of all(".tabled table")) {
    const names = all("thead th", table).map((head) => head.textContent);
    all("tbody tr", table).forEach((row) => all("td", row).forEach((cell, i) => { cell.dataset.label = names[i]; }));
  }
  for (const button of all("[data-columns]")) {
    const table = document.getElementById(button.dataset.columns);
    table.classList.add("few");
    button.addEventListener("click", () => { press(button, !table.classList.toggle("few")); });
  }

  // Saving: the figure's numbers as CSV or JSON, its picture as SVG or PNG.
  const plainText = (text) => new DOMParser().parseFromString(text, "text/html").body.textContent;
  const csv = ({ data, layout }) => {
    const quote = (value) => {
      const text = String(value ?? "");
      return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text;
    };
    const rows = [["series", layout.xaxis?.title?.text || "x", layout.yaxis?.title?.text || "y", "low", "high"]];
    for (const trace of data.filter((one) => one.name && one.x)) {
      trace.x.forEach((x, i) => {
        const error = trace.error_x ?? trace.error_y;
        const at = trace.error_x ? x : trace.y[i];
        const ends = error ? [at - error.arrayminus[i], at + error.array[i]] : ["", ""];
        rows.push([plainText(trace.name), x, trace.y[i], ...ends]);
      });
    }
    return rows.map((row) => row.map(quote).join(",")).join("\n") + "\n";
  };
  const picture = async (id, format) => {
    const plot = document.getElementById(id);
    const address = await Plotly.toImage(plot, { format, width: plot.clientWidth, height: plot.clientHeight, scale: format === "png" ? 2 : 1 });
    const [head, body] = [address.slice(0, address.indexOf(",")), address.slice(address.indexOf(",") + 1)];
    const bytes = head.endsWith("base64") ? Uint8Array.from(atob(body), (one) => one.charCodeAt(0)) : decodeURIComponent(body);
    return new Blob([bytes], { type: format === "png" ? "image/png" : "image/svg+xml" });
  };
  const save = async (id, kind) => {
    const blob = kind === "csv" ? new Blob([csv(figures[id])], { type: "text/csv" })
      : kind === "json" ? new Blob([JSON.stringify(figures[id])], { type: "application/json" })
        : await picture(id, kind);
    const link = document.createElement("a");
    link.href = URL.createObjectURL(blob);
    link.download = `${id}.${kind}`;
    link.click();
    setTimeout(() => URL.revokeObjectURL(link.href), 1000);
  };
  for (const caption of all("figure.panel figcaption")) {
    const { id } = caption.parentElement.querySelector(".plot");
    const menu = document.createElement("details");
    menu.className = "save";
    menu.innerHTML = "<summary>Save</summary><p></p>";
    for (const kind of ["csv", "json", "svg", "png"]) {
      const button = document.createElement("button");
      button.type = "button";
      button.dataset.save = kind;
      button.textContent = kind.toUpperCase();
      button.addEventListener("click", () => { menu.open = false; save(id, kind); });
      menu.lastChild.append(button);
    }
    menu.firstChild.setAttribute("aria-label", `Save ${caption.firstElementChild.textContent}`);
    caption.append(menu);
  }

  darkTheme.addEventListener("change", drawAll);
  // Nobody clicks on paper: it has every tab and every row of the tables.
  const unseen = () => all('[id^="tab-"], tbody[data-list] > tr').filter((one) => one.hidden);
  let folded = [];
  addEventListener("beforeprint", () => {
    paper = true;
    document.body.classList.add("paper");
    folded = unseen();
    folded.forEach((one) => { one.hidden = false; });
    drawAll();
  });
  addEventListener("afterprint", () => {
    paper = false;
    document.body.classList.remove("paper");
    folded.forEach((one) => { one.hidden = true; });
    drawAll();
  });
  let waiting;
  addEventListener("resize", () => { clearTimeout(waiting); waiting = setTimeout(drawAll, 120); });
  drawAll();
})();
