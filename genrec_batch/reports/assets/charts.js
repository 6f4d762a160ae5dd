// Draws the page's charts with Chart.js from the JSON beside it. Colours come from the page's own style, so that a
// change between light and dark draws them anew.
"use strict";
(() => {
  const specs = JSON.parse(document.getElementById("charts").textContent);
  const drawn = [];
  const colour = (name) => getComputedStyle(document.documentElement).getPropertyValue(name).trim();
  const hue = (i) => colour(`--c${i % 9}`);
  const figure = (value) => value.toLocaleString("en-US", { maximumFractionDigits: Math.abs(value) < 1 ? 4 : 2 });
  const size = (bytes) => {
    const units = ["B", "KiB", "MiB", "GiB", "TiB"];
    let i = 0;
    for (; bytes >= 1024 && i < units.length - 1; i++) bytes /= 1024;
    return `${figure(bytes)} ${units[i]}`;
  };
  const axis = (label, more = {}) => ({
    title: { display: true, text: label, color: colour("--soft") },
    ticks: { color: colour("--soft"), ...more.ticks },
    grid: { color: colour("--grid") },
    border: { color: colour("--line") },
    ...Object.fromEntries(Object.entries(more).filter(([key]) => key !== "ticks")),
  });
  const frame = (legend, tooltip, points = false) => ({
    responsive: true,
    maintainAspectRatio: false,
    animation: false,
    plugins: {
      legend: {
        display: legend,
        position: "bottom",
        labels: {
          color: colour("--ink"),
          boxWidth: points ? 8 : 14,
          boxHeight: points ? 8 : undefined,
          usePointStyle: points,
          filter: (item, data) => !data.datasets[item.datasetIndex].borderDash?.length,
        },
      },
      tooltip: { ...tooltip },
    },
  });

  const powers = (values) => {
    const found = [...new Set(values)].sort((a, b) => a - b);
    return (scale) => { scale.ticks = found.map((value) => ({ value })); };
  };

  const makers = {
    lines: (spec) => ({
      type: "line",
      data: {
        datasets: spec.series.map((line, i) => ({
          label: line.name,
          data: line.points.map(([x, y]) => ({ x, y })),
          borderColor: hue(line.colour ?? i),
          backgroundColor: hue(line.colour ?? i),
          borderDash: line.dashed ? [5, 4] : [],
          pointStyle: ["circle", "triangle", "rect", "rectRot", "star"][(line.colour ?? i) % 5],
          pointRadius: line.dashed ? 0 : 5,
          borderWidth: line.dashed ? 1.5 : 2,
        })),
      },
      options: {
        ...frame(true, {
          callbacks: {
            title: (items) => `${figure(items[0].parsed.x)} ${spec.x}`,
            label: (item) => `${item.dataset.label}: ${figure(item.parsed.y)} ${spec.y}`,
          },
        }, true),
        interaction: { mode: "nearest", axis: "x", intersect: false },
        scales: {
          x: axis(`${spec.x} (log)`, {
            type: "logarithmic",
            afterBuildTicks: spec.ticks === "round" ? undefined
              : powers(spec.series.flatMap((line) => line.points.map(([x]) => x))),
            ticks: { callback: (value) => figure(value), maxRotation: 0 },
          }),
          y: axis(spec.name === "latency" ? `${spec.y} (log)` : spec.y, {
            type: spec.name === "latency" ? "logarithmic" : "linear",
            beginAtZero: spec.name !== "latency",
            ticks: { callback: (value) => figure(value), maxTicksLimit: 8 },
          }),
        },
      },
    }),
    bars: (spec) => flat(spec, "y"),
    columns: (spec) => flat(spec, "x"),
    timeline: (spec) => ({
      type: "bar",
      data: {
        labels: spec.lanes,
        datasets: spec.series.map((stage, i) => ({
          label: stage.name,
          data: stage.bars.map((bar) => ({ x: [bar.start_s, bar.stop_s], y: bar.lane, bar })),
          backgroundColor: stage.name === "other stages" ? colour("--c8") : hue(i),
          grouped: false,
          barPercentage: 0.8,
          categoryPercentage: 1,
          minBarLength: 2,
        })),
      },
      options: {
        ...frame(true, {
          callbacks: {
            title: (items) => `${items[0].raw.bar.stage} on ${items[0].raw.bar.lane}`,
            label: ({ raw: { bar } }) => [
              `${figure(bar.start_s)} s to ${figure(bar.stop_s)} s, at work ${figure(bar.busy_s)} s`,
              ...(bar.spans > 1 ? [`${figure(bar.spans)} spans joined`] : []),
              ...(bar.rows ? [`${figure(bar.rows)} rows`] : []),
              ...(bar.bytes ? [size(bar.bytes)] : []),
            ],
          },
        }),
        indexAxis: "y",
        scales: {
          x: axis(spec.x, { type: "linear", min: 0, ticks: { maxRotation: 0 } }),
          y: axis("", { title: { display: false } }),
        },
      },
    }),
  };

  const flat = (spec, indexAxis) => {
    const value = axis(indexAxis === "y" ? spec.x : spec.y, { beginAtZero: true, ticks: { maxRotation: 0 } });
    const name = axis(indexAxis === "y" ? "" : spec.x, {
      title: { display: indexAxis === "x", text: spec.x, color: colour("--soft") },
      ticks: { autoSkip: indexAxis === "x", maxRotation: 0 },
      grid: { display: false },
    });
    return {
      type: "bar",
      data: {
        labels: spec.labels,
        datasets: spec.series.map((one, i) => ({ label: one.name, data: one.values, backgroundColor: hue(i), minBarLength: 1 })),
      },
      options: {
        ...frame(spec.series.length > 1, {
          callbacks: {
            title: (items) => (indexAxis === "x" ? `${items[0].label} ${spec.x}` : items[0].label),
            label: (item) => {
              const unit = indexAxis === "y" ? spec.x : spec.y;
              const told = `${figure(item.raw)} ${unit}`;
              return spec.series.length > 1 ? `${item.dataset.label}: ${told}` : told;
            },
          },
        }),
        indexAxis,
        scales: indexAxis === "y" ? { x: value, y: name } : { x: name, y: value },
      },
    };
  };

  const draw = () => {
    while (drawn.length) drawn.pop().destroy();
    Chart.defaults.font.family = getComputedStyle(document.body).fontFamily;
    for (const spec of specs) {
      const canvas = document.getElementById(`chart-${spec.name}`);
      const rows = spec.lanes ? spec.lanes.length * 34 + 130 : spec.kind === "bars" ? spec.labels.length * (14 + 12 * spec.series.length) + 90 : 0;
      canvas.parentElement.style.height = rows ? `${Math.max(rows, 170)}px` : "";
      drawn.push(new Chart(canvas, makers[spec.kind](spec)));
    }
  };
  draw();
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", draw);
})();
