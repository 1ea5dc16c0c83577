"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const bytes = (text) => Uint8Array.from(atob(text), (c) => c.charCodeAt(0));
  const shorts = (text) => new Uint16Array(bytes(text).buffer);
  const ids = data.wide ? new Uint32Array(bytes(data.ids).buffer) : shorts(data.ids);
  const probs = shorts(data.probs);
  const chosen = data.chosen.map((each) => ({ word: each.word, probs: shorts(each.probs) }));
  const { words, layers, cells, k } = data;
  const n = cells.length;
  const by = (id) => document.getElementById(id);
  const stage = by("cells");
  const state = { layer: layers.length - 1, query: "", tile: cells.length ? cells[0].tile : 0, pinned: -1 };
  const percent = (p) => (p >= 0.9995 ? "100%" : p >= 0.001 ? (100 * p).toFixed(1) + "%" : "<0.1%");
  const at = (layer, token, rank) => (layer * n + token) * k + rank;
  const prob = (layer, token, rank) => probs[at(layer, token, rank)] / 65535;
  const word = (layer, token, rank) => words[ids[at(layer, token, rank)]];

  // A chosen word has its probability everywhere; any other word only where it is among the top k.
  const lookUp = (query) => {
    const wanted = query.trim().toLowerCase();
    if (!wanted) return null;
    const full = chosen.find((each) => each.word.toLowerCase() === wanted);
    if (full) return (layer, token) => full.probs[layer * n + token] / 65535;
    return (layer, token) => {
      for (let rank = 0; rank < k; rank++)
        if (word(layer, token, rank).toLowerCase() === wanted) return prob(layer, token, rank);
      return 0;
    };
  };

  // Light yellow over green to dark blue: falls in lightness, so it reads in grey too.
  const stops = [[253, 231, 37], [94, 201, 98], [33, 145, 140], [59, 82, 139], [68, 1, 84]];
  const colour = (share) => {
    const place = Math.min(Math.max(share, 0), 1) * (stops.length - 1);
    const low = Math.min(Math.floor(place), stops.length - 2);
    const mix = stops[low].map((c, i) => Math.round(c + (stops[low + 1][i] - c) * (place - low)));
    return `rgba(${mix.join(",")},${(0.12 + 0.6 * Math.min(Math.max(share, 0), 1)).toFixed(3)})`;
  };

  const element = (tag, text, className) => {
    const made = document.createElement(tag);
    if (text !== undefined) made.textContent = text;
    if (className) made.className = className;
    return made;
  };

  const place = (token) => {
    const cell = cells[token];
    return cell.row < 0 ? `token ${cell.position}` : `row ${cell.row + 1}, column ${cell.col + 1}`;
  };

  const buttons = new Map();
  const build = () => {
    stage.replaceChildren();
    buttons.clear();
    const shown = cells.map((cell, token) => [cell, token]).filter(([cell]) => cell.tile === state.tile && cell.box);
    const columns = Math.max(1, ...shown.map(([cell]) => cell.col + 1));
    stage.style.setProperty("--word", columns <= 8 ? "11px" : columns <= 12 ? "9px" : "7px");
    for (const [cell, token] of shown) {
      const button = element("button", undefined, "cell");
      button.type = "button";
      button.dataset.token = token;
      const [left, top, width, height] = cell.box;
      Object.assign(button.style, { left: left + "%", top: top + "%", width: width + "%", height: height + "%" });
      button.append(element("span"));
      button.addEventListener("mouseenter", () => hover(token));
      button.addEventListener("focus", () => hover(token));
      button.addEventListener("click", () => pin(token));
      buttons.set(token, button);
      stage.append(button);
    }
    stage.dataset.columns = columns;
  };

  const paint = () => {
    const find = lookUp(state.query);
    const value = find || ((layer, token) => prob(layer, token, 0));
    let most = 0, hits = 0;
    for (let layer = 0; layer < layers.length; layer++)
      for (let token = 0; token < n; token++) most = Math.max(most, value(layer, token));
    const heat = by("heat").checked;
    by("image").classList.toggle("faded", heat);
    const wordsShown = by("words").checked && stage.dataset.columns <= 16;
    for (const [token, button] of buttons) {
      const here = value(state.layer, token);
      hits += here > 0;
      button.style.background = heat ? colour(most > 0 ? here / most : 0) : "transparent";
      button.style.opacity = find && here === 0 ? 0.35 : 1;
      button.classList.toggle("pinned", token === state.pinned);
      const span = button.firstChild;
      span.textContent = word(state.layer, token, 0);
      span.hidden = !wordsShown;
      span.style.display = wordsShown ? "" : "none";
      button.setAttribute("aria-label", `${place(token)}: ${word(state.layer, token, 0)}, ${percent(here)}`);
      button.dataset.value = here.toFixed(5);
    }
    by("layer-name").textContent = layers[state.layer];
    by("legend").textContent = (find ? `probability of "${state.query.trim()}"` : "probability of the top word") + `, 0 to ${percent(most)}`;
    by("scale").style.background = `linear-gradient(to right, ${[0, 0.25, 0.5, 0.75, 1].map(colour).join(",")})`;
    by("found").textContent = find ? (most > 0 ? `"${state.query.trim()}" is at ${hits} of ${buttons.size} patches in this layer` : `"${state.query.trim()}" is nowhere among the top ${k} words`) : "";
  };

  const row = (cellsOfRow, now) => {
    const made = element("tr", undefined, now ? "now" : "");
    cellsOfRow.forEach(([text, className, bar]) => {
      const cell = element("td", undefined, className || "");
      if (bar !== undefined) {
        const mark = element("span", undefined, "bar");
        mark.style.width = Math.max(1, Math.round(60 * bar)) + "px";
        cell.append(mark);
      }
      cell.append(document.createTextNode(text));
      made.append(cell);
    });
    return made;
  };

  const hover = (token) => {
    state.hovered = token;
    by("hover-title").textContent = `${place(token)}, ${layers[state.layer]}`;
    const rows = [];
    for (let rank = 0; rank < k; rank++) {
      const p = prob(state.layer, token, rank);
      rows.push(row([[String(rank + 1), "n"], [word(state.layer, token, rank)], [percent(p), "n", p]]));
    }
    by("hover").tBodies[0].replaceChildren(...rows);
  };

  const pin = (token) => {
    state.pinned = token;
    follow();
    paint();
  };

  const follow = () => {
    if (state.pinned < 0) return;
    const find = lookUp(state.query);
    by("pin-title").textContent = `${place(state.pinned)} through the layers`;
    const rows = layers.map((name, layer) => {
      const said = [];
      for (let rank = 0; rank < Math.min(3, k); rank++) said.push(`${word(layer, state.pinned, rank)} ${percent(prob(layer, state.pinned, rank))}`);
      const p = find ? find(layer, state.pinned) : prob(layer, state.pinned, 0);
      return row([[name, "n"], [said.join(", ")], [percent(p), "n", p]], layer === state.layer);
    });
    by("pin").tBodies[0].replaceChildren(...rows);
  };

  const refresh = () => {
    paint();
    follow();
    if (state.hovered !== undefined) hover(state.hovered);
  };

  by("layer").addEventListener("input", (event) => { state.layer = Number(event.target.value); refresh(); });
  by("search").addEventListener("input", (event) => { state.query = event.target.value; refresh(); });
  by("words").addEventListener("change", paint);
  by("heat").addEventListener("change", paint);
  const tiles = [...new Set(cells.filter((cell) => cell.box).map((cell) => cell.tile))];
  if (tiles.length > 1) {
    by("tile-label").hidden = false;
    by("tile").append(...tiles.map((tile) => Object.assign(element("option", tile === 0 ? "whole image" : `tile ${tile}`), { value: tile })));
    by("tile").addEventListener("change", (event) => { state.tile = Number(event.target.value); build(); refresh(); });
  }
  by("known").append(...data.suggested.map((text) => Object.assign(element("option"), { value: text })));
  build();
  refresh();
})();
