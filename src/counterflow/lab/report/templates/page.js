(() => {
  "use strict";

  // ---- Plots, redrawn in the colors of the scheme ----

  const root = document.documentElement;
  const finger = matchMedia("(pointer: coarse)").matches;
  const color = (name) => getComputedStyle(root).getPropertyValue(name).trim();
  const resolve = (value) => {
    if (typeof value === "string") {
      const variable = /^var\((--[a-z0-9-]+)\)$/.exec(value);
      return variable ? color(variable[1]) : value;
    }
    if (Array.isArray(value)) return value.map(resolve);
    if (value && typeof value === "object") {
      return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, resolve(inner)]));
    }
    return value;
  };

  const template = () => {
    const axis = {
      gridcolor: color("--line"), linecolor: color("--muted"), zerolinecolor: color("--line"),
      tickcolor: color("--muted"), tickfont: { color: color("--muted") }, automargin: true,
      title: { standoff: 10 },
      nticks: 6, // with more, a logarithmic axis labels every digit, one over the other
    };
    return {
      layout: {
        paper_bgcolor: color("--page"), plot_bgcolor: color("--page"),
        font: { family: getComputedStyle(document.body).fontFamily, size: 13, color: color("--ink") },
        colorway: [1, 2, 3, 4, 5, 6].map((n) => color(`--series-${n}`)),
        colorscale: { sequential: [[0, color("--panel")], [1, color("--series-1")]] },
        xaxis: axis, yaxis: axis,
        legend: { orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom" },
        hoverlabel: { bgcolor: color("--panel"), bordercolor: color("--line"), font: { color: color("--ink") } },
        margin: { l: 60, r: 24, t: 24, b: 52 },
        // With a finger, dragging is for scrolling the page.
        dragmode: finger ? false : "zoom",
      },
    };
  };

  const draw = (source) => {
    const place = document.getElementById(source.dataset.plot);
    const figure = resolve(JSON.parse(source.textContent));
    const layout = { ...figure.layout, template: template(), autosize: true };
    delete layout.width;
    layout.height ??= place.clientWidth < 600 ? 340 : 420;
    place.style.height = `${layout.height}px`;
    const config = {
      responsive: true, displaylogo: false, displayModeBar: finger ? false : "hover",
      modeBarButtonsToRemove: ["select2d", "lasso2d"],
      showSendToCloud: false, plotlyServerURL: "", // nothing leaves the page
    };
    return Plotly.react(place, figure.data, layout, config).then(() => {
      // The text before the plot says what it shows; single ticks and labels read aloud say nothing.
      for (const drawing of place.querySelectorAll(".main-svg")) drawing.setAttribute("aria-hidden", "true");
      place.dataset.drawn = "yes";
    });
  };

  // One plot a frame, so that the page can be scrolled while they are being drawn.
  let turn = 0;
  const drawAll = async () => {
    const mine = ++turn;
    for (const source of document.querySelectorAll("script[data-plot]")) {
      await new Promise(requestAnimationFrame);
      if (mine !== turn) return;
      await draw(source);
    }
    root.dataset.drawn = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
  };
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAll);
  drawAll();

  // ---- Filters ----

  const filters = document.getElementById("filters");
  const claims = [...document.querySelectorAll("[data-claim]")];
  const paper = document.getElementById("paper"); // not there with one paper only
  const blocks = [...document.querySelectorAll(".overview > article, .paper")];
  const total = document.querySelectorAll("tr[data-claim]").length;

  const apply = () => {
    const chosen = (name) =>
      new Set([...filters.querySelectorAll(`input[name=${name}]:checked`)].map((box) => box.value));
    const verdicts = chosen("verdict");
    const settings = chosen("setting");
    const among = (element) => !paper?.value || element.dataset.paper === paper.value;
    for (const claim of claims) {
      const { verdict, setting } = claim.dataset;
      claim.hidden = !(among(claim) && verdicts.has(verdict) && settings.has(setting));
    }
    for (const block of blocks) {
      block.hidden = !among(block);
      block.querySelector(".none").hidden = block.querySelector("[data-claim]:not([hidden])") !== null;
    }
    const shown = document.querySelectorAll("tr[data-claim]:not([hidden])").length;
    document.getElementById("shown").textContent =
      shown === total ? `All ${total} claims are shown.` : `${shown} of ${total} claims are shown.`;
    document.getElementById("all").hidden = shown === total;
    // A plot that was drawn while its section was hidden has no width yet.
    for (const plot of document.querySelectorAll(".plot[data-drawn]")) {
      if (plot.checkVisibility()) Plotly.Plots.resize(plot);
    }
  };
  filters.addEventListener("change", apply);
  filters.addEventListener("submit", (event) => event.preventDefault());
  // The boxes change after the reset event has run.
  filters.addEventListener("reset", () => setTimeout(apply));
  // A browser may restore the boxes when the page is reloaded.
  window.addEventListener("pageshow", apply);
})();
