// A patching sweep as a table of coloured numbers: blue towards the clean run, red towards the corrupted one, both fading
// into the page where a patch does nothing. Of three axes one is fixed, by a thumbnail and the arrow keys.
const TOWARDS_CLEAN = [42, 116, 187];
const TOWARDS_CORRUPTED = [194, 54, 47];

// Of a colour of this opacity on the light page, where dark text must give way to white; on the dark one it is white anyway.
function luminance(colour, opacity) {
  const [r, g, b] = colour.map((value) => {
    const mixed = (opacity * value + (1 - opacity) * 253) / 255;
    return mixed > 0.04045 ? ((mixed + 0.055) / 1.055) ** 2.4 : mixed / 12.92;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
}

function patchingView(root) {
  const data = JSON.parse(root.querySelector('script').textContent);
  const sizes = data.labels.map((along) => along.length);
  const words = { pos: 'position', dest_pos: 'query position', src_pos: 'key position' };
  const named = (axis) => words[data.axes[axis]] ?? data.axes[axis];
  const state = { fixed: 0, panel: 0, row: 0, column: 0 }; // `fixed` is the axis of the panels: 0 or 1
  const index = (row, column, panel = state.panel) => (state.fixed ? [row, panel, column] : [panel, row, column]);
  const of = (field, [a, b, c]) => data[field][a][b][c];
  const rowAxis = () => 1 - state.fixed;
  const fromBelow = () => data.axes[rowAxis()] === 'layer';
  const number = (value, digits = 3) => (Math.abs(value) < 0.5 * 10 ** -digits ? 0 : value).toFixed(digits).replace('-', '−');
  const share = (value) => (value - data.base) / data.limit;
  const colour = (value) => (share(value) > 0 ? TOWARDS_CLEAN : TOWARDS_CORRUPTED);

  function paintCell(node, value) {
    const opacity = Math.min(1, Math.abs(share(value)));
    node.style.backgroundColor = opacity < 0.01 ? '' : `rgb(${colour(value).join(' ')} / ${opacity})`;
    node.style.color = opacity < 0.5 ? '' : luminance(colour(value), opacity) < 0.18 ? '#ffffff' : 'light-dark(#000000, #ffffff)';
  }

  function drawPanel(canvas, panel) {
    const [nRows, nColumns] = [sizes[rowAxis()], sizes[2]];
    Object.assign(canvas, { width: nColumns, height: nRows });
    const image = canvas.getContext('2d').createImageData(nColumns, nRows);
    for (let row = 0; row < nRows; row++) {
      for (let column = 0; column < nColumns; column++) {
        const value = of('values', index(row, column, panel));
        if (value === null) continue;
        const at = (fromBelow() ? nRows - 1 - row : row) * nColumns + column;
        image.data.set([...colour(value), Math.round(255 * Math.min(1, Math.abs(share(value))))], 4 * at);
      }
    }
    canvas.getContext('2d').putImageData(image, 0, 0);
    const scale = Math.max(1, Math.min(6, Math.floor(70 / nColumns), Math.floor(70 / nRows)));
    Object.assign(canvas.style, { width: `${nColumns * scale}px`, height: `${nRows * scale}px` });
  }

  const panels = make('div', { class: 'panels', role: 'group' });
  const grid = make('div', { class: 'grid' });
  const said = make('p', { class: 'said', role: 'status' });
  let cells = [];
  let heads = [];
  let thumbs = [];

  function header(label) {
    const found = /^(\d+) (.*)$/su.exec(label); // a position and its token
    return found ? [make('small', {}, found[1]), make('span', {}, found[2])] : [make('span', {}, label)];
  }

  function buildPanels() {
    panels.setAttribute('aria-label', named(state.fixed));
    thumbs = data.labels[state.fixed].map((label, panel) => {
      const canvas = make('canvas');
      const thumb = make('button', { type: 'button', class: 'thumb', 'data-panel': panel, title: label, 'aria-label': `${named(state.fixed)} ${label}` }, canvas, label);
      drawPanel(canvas, panel);
      thumb.addEventListener('click', () => { state.panel = panel; fill(); });
      return thumb;
    });
    roving(thumbs, thumbs.length);
    panels.replaceChildren(...thumbs);
  }

  function buildTable() {
    const [nRows, nColumns] = [sizes[rowAxis()], sizes[2]];
    const labels = data.labels[2];
    const corner = [named(rowAxis()), named(2)].filter((name) => name).join(' \\ ');
    heads = labels.map((label) => make('th', { scope: 'col', title: label }, ...header(label)));
    const body = make('tbody');
    cells = [];
    for (let line = 0; line < nRows; line++) {
      const row = fromBelow() ? nRows - 1 - line : line;
      const label = data.labels[rowAxis()][row];
      const tr = make('tr', {}, make('th', { scope: 'row', title: label }, label));
      for (let column = 0; column < nColumns; column++) {
        const node = make('td', { 'data-row': row, 'data-column': column });
        const look = () => { Object.assign(state, { row, column }); mark(); };
        node.addEventListener('pointerenter', look);
        node.addEventListener('focus', look);
        cells.push({ node, row, column });
        tr.append(node);
      }
      body.append(tr);
    }
    roving(cells.map(({ node }) => node), nColumns);
    const long = labels.some((label) => [...label.replace(/^\d+ /u, '')].length > 5);
    const table = make('table', { class: long ? 'long' : '' }, make('thead', {}, make('tr', {}, make('th', { scope: 'col' }, corner), ...heads)), body);
    grid.replaceChildren(table);
  }

  const where = (at) => data.axes.map((axis, i) => (axis ? `${named(i)} ${data.axes[i].endsWith('pos') ? data.labels[i][at[i]].replace(/^(\d+) (.*)$/su, '$1 ‘$2’') : data.labels[i][at[i]]}` : '')).filter((text) => text).join(', ');

  function sentences(at) {
    const value = of('values', at);
    if (value === null) return [`${where(at)}: not done; the sweep was interrupted.`];
    const raw = data.corrupted + value * (data.clean - data.corrupted);
    const interval = data.low ? ` (95 % interval over pairs: ${number(of('low', at))} to ${number(of('high', at))})` : '';
    const ends = `the clean run has ${number(data.clean)}, the corrupted one ${number(data.corrupted)}`;
    const parts = [`${where(at) || 'the patch'}: ${number(value)}${interval}, where 0 is the corrupted run and 1 the clean one.`,
      `${data.metric} ${number(raw)}; ${ends}.`];
    if (of('skipped', at)) parts.push('Nothing to patch here: nothing differs, or nothing reaches the metric, so that this is the patched run’s own value.');
    return parts;
  }

  function mark() {
    const { row, column } = state;
    Object.assign(root.dataset, { row, column });
    for (const cell of cells) cell.node.classList.toggle('on', cell.row === row && cell.column === column);
    heads.forEach((node, i) => node.classList.toggle('at', i === column));
    said.replaceChildren(...sentences(index(row, column)).flatMap((part) => [part, make('br')]));
  }

  function fill() {
    root.dataset.panel = state.panel;
    thumbs.forEach((thumb, i) => thumb.setAttribute('aria-pressed', i === state.panel));
    for (const { node, row, column } of cells) {
      const at = index(row, column);
      const value = of('values', at);
      node.className = value === null ? 'undone' : of('skipped', at) ? 'skipped' : '';
      node.textContent = value === null ? '×' : of('skipped', at) ? '' : number(value, 2);
      node.setAttribute('aria-label', sentences(at).join(' '));
      paintCell(node, value === null ? data.base : value);
    }
    mark();
  }

  // The cell that did most, to begin with.
  let most = -1;
  let best = [0, 0, 0];
  data.values.forEach((panel, a) => panel.forEach((row, b) => row.forEach((value, c) => {
    if (value !== null && Math.abs(share(value)) > most) [most, best] = [Math.abs(share(value)), [a, b, c]];
  })));

  function arrange(fixed) {
    const at = index(state.row, state.column);
    Object.assign(state, { fixed, panel: at[fixed], row: at[1 - fixed] });
    if (data.axes[0]) buildPanels();
    buildTable();
    fill();
  }

  const bar = make('canvas', { width: 65, height: 1 });
  const context = bar.getContext('2d');
  for (let i = 0; i < 65; i++) {
    context.fillStyle = `rgb(${(i > 32 ? TOWARDS_CLEAN : TOWARDS_CORRUPTED).join(' ')} / ${Math.abs(i - 32) / 32})`;
    context.fillRect(i, 0, 1, 1);
  }
  const ends = [data.base - data.limit, data.base + data.limit].map((value) => number(value, 2));
  const legend = make('span', { class: 'legend' }, ends[0], bar, `${ends[1]} (0 corrupted, 1 clean; no effect is ${data.base})`);
  const controls = make('div', { class: 'controls' });
  if (data.axes[0]) {
    const choose = make('select', { 'aria-label': 'a panel for each' }, ...[0, 1].map((axis) => make('option', { value: axis }, named(axis))));
    choose.addEventListener('change', () => arrange(Number(choose.value)));
    controls.append(make('label', {}, 'a panel for each', choose));
  }
  controls.append(legend);
  root.append(controls, ...(data.axes[0] ? [panels] : []), grid, said);
  Object.assign(state, { panel: best[0], row: best[1], column: best[2] });
  arrange(0);
}

document.querySelectorAll('[data-view="patching"]').forEach(patchingView);
