"use strict";
// Picks the plan with the lowest weighted sum of metrics as the sliders say, and draws its weights and predictions.
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const form = document.querySelector("form.sliders");
  const sliders = [...form.querySelectorAll("input")];
  const first = sliders.map((slider) => slider.value);
  const deviations = 1.6448536269514722; // half a 90 % interval

  const cost = (plan, weights) => {
    let mean = 0, squared = 0;
    weights.forEach((weight, d) => {
      mean += weight * (data.higher[d] ? -1 : 1) * data.means[plan][d];
      squared += (weight * data.halves[plan][d] / deviations) ** 2;
    });
    return mean + data.caution * Math.sqrt(squared);
  };

  // Plan 0 is the recommendation: it was searched for more finely than the others, and stands while no slider is moved.
  const pick = () => {
    if (sliders.every((slider, d) => slider.value === first[d])) return 0;
    const weights = sliders.map((slider) => Number(slider.value));
    if (!weights.some((weight) => weight > 0)) return 0;
    const costs = data.plans.map((_, plan) => cost(plan, weights));
    return costs.indexOf(Math.min(...costs));
  };

  const part = (kind, left, width) => {
    const element = document.createElement("i");
    element.className = kind;
    element.style.left = `${left}%`;
    if (width !== undefined) element.style.width = `${width}%`;
    return element;
  };
  const row = (name, parts, text) => {
    const item = document.createElement("li");
    const [label, track, value] = ["span", "div", "span"].map((tag) => document.createElement(tag));
    label.textContent = name;
    track.className = "track";
    track.append(...parts);
    value.textContent = text;
    item.append(label, track, value);
    return item;
  };

  const drawWeights = (plan) => {
    const stages = data.plans[plan];
    const largest = Math.max(...data.present, ...stages.flat(), 1e-9);
    const mean = data.domains.map((_, k) => stages.reduce((sum, stage, s) => sum + data.lengths[s] * stage[k], 0));
    const order = data.domains.map((_, k) => k).sort((a, b) => mean[b] - mean[a]);
    for (const list of document.querySelectorAll(".bars")) {
      const stage = stages[Number(list.dataset.stage)];
      list.replaceChildren(...order.map((k) => {
        const each = data.epochsPerShare[k];
        const epochs = each === null ? "" : ` · ${(mean[k] * each).toFixed(2)}×`;
        const bar = [part("fill", 0, 100 * stage[k] / largest), part("mark", 100 * data.present[k] / largest)];
        return row(data.domains[k], bar, `${(100 * stage[k]).toFixed(1)} %${epochs}`);
      }));
    }
  };

  const drawMetrics = (plan) => {
    document.querySelector(".intervals").replaceChildren(...data.metrics.map((name, d) => {
      const seen = data.means.map((means) => means[d]);
      const half = data.halves[plan][d], mean = data.means[plan][d], now = data.presentMeans[d];
      const low = Math.min(...seen, mean - half, now), high = Math.max(...seen, mean + half, now);
      const at = (value) => 100 * (value - low) / (high - low || 1);
      const parts = [part("span", at(mean - half), at(mean + half) - at(mean - half)), part("mark", at(now)), part("dot", at(mean))];
      return row(name, parts, `${mean.toPrecision(4)} ± ${half.toPrecision(2)}`);
    }));
  };

  const draw = () => {
    sliders.forEach((slider) => { slider.previousElementSibling.textContent = slider.value; });
    const plan = pick();
    drawWeights(plan);
    drawMetrics(plan);
    document.documentElement.dataset.plan = String(plan);
  };
  // The address `page.html#weights=50,0,100` opens the page with the sliders there, so a position can be shared.
  const shared = new URLSearchParams(location.hash.slice(1)).get("weights");
  (shared ?? "").split(",").forEach((value, d) => {
    if (value !== "" && sliders[d]) sliders[d].value = value;
  });
  form.addEventListener("input", () => {
    history.replaceState(null, "", `#weights=${sliders.map((slider) => slider.value).join(",")}`);
    draw();
  });
  form.addEventListener("reset", () => setTimeout(draw));
  draw();
})();
