// Every head's pattern as a thumbnail, one of them enlarged; a token under the mouse shows what it attends to. A click
// holds a token, so that the mouse can wander; Escape or a second click lets go.

// The 256 colours that a weight can have, as pixels in the machine's own order of bytes: 144 heads of 128 tokens are 2.4
// million pixels to paint before anything is seen.
const PIXELS = new Uint32Array(new Uint8ClampedArray(Array.from({ length: 256 }, (_, level) => [...viridis(level / 255), 255]).flat()).buffer);

function attentionView(root) {
  const data = JSON.parse(root.querySelector('script').textContent);
  const [nSteps, nLayers, nHeads, n] = data.shape;
  const bytes = unpackBytes(data.packed);
  const state = { step: nSteps - 1, layer: 0, head: 0, token: null, other: null, locked: false, asKey: false };
  const nameOf = (layer, head) => `L${layer}H${head}`;
  const weight = (layer, head, query, key) => bytes[(((state.step * nLayers + layer) * nHeads + head) * n + query) * n + key] / 255;
  const here = (query, key) => weight(state.layer, state.head, query, key);

  function drawPattern(canvas, layer, head) {
    const context = canvas.getContext('2d');
    const image = context.createImageData(n, n);
    const pixels = new Uint32Array(image.data.buffer);
    const start = ((state.step * nLayers + layer) * nHeads + head) * n * n;
    for (let query = 0; query < n; query++) {
      for (let at = query * n; at <= query * n + query; at++) pixels[at] = PIXELS[bytes[start + at]];
    }
    context.putImageData(image, 0, 0);
  }

  // The thumbnails, one row a layer. Of many heads only rows and columns are named, so that all can be seen beside the one
  // that is enlarged.
  const compact = nHeads > 4;
  const heads = make('div', { class: compact ? 'heads compact' : 'heads', role: 'group', 'aria-label': 'attention heads' });
  const size = compact ? Math.max(16, Math.min(60, Math.floor(440 / nHeads) - 2)) : Math.max(44, Math.min(120, Math.floor(300 / nHeads) - 14));
  heads.style.gridTemplateColumns = `${compact ? 'auto ' : ''}repeat(${nHeads}, ${size}px)`;
  if (compact) heads.append(make('span'), ...Array.from({ length: nHeads }, (_, head) => make('span', {}, `H${head}`)));
  const thumbs = [];
  for (let layer = 0; layer < nLayers; layer++) {
    if (compact) heads.append(make('span', {}, `L${layer}`));
    for (let head = 0; head < nHeads; head++) {
      const name = nameOf(layer, head);
      const canvas = make('canvas', { width: n, height: n });
      const note = data.notes[name];
      const thumb = make('button', { type: 'button', class: 'thumb', 'data-head': name, 'aria-label': note ? `${name}, ${note}` : name }, canvas, ...(compact ? [] : [name]));
      if (note || compact) thumb.title = note ? `${name}, ${note}` : name;
      thumb.classList.toggle('noted', Boolean(note));
      thumb.addEventListener('click', () => { Object.assign(state, { layer, head }); refresh(); });
      thumbs.push({ thumb, canvas, layer, head });
      heads.append(thumb);
    }
  }
  roving(thumbs.map(({ thumb }) => thumb), nHeads);

  // The enlarged head: a canvas for the weights under an SVG for the token labels and the crosshair.
  const title = make('h4');
  const canvas = make('canvas', { width: n, height: n });
  const labelled = n <= 64;
  const longest = labelled ? Math.min(10, Math.max(...data.tokens.map((token) => [...token].length))) : 0;
  const letter = Math.min(1, n / 36); // its size, in cells: about 13 pixels however many there are
  const margin = labelled ? 0.75 * letter * longest + 0.5 : 0.5; // in cells; a monospaced letter is 0.6 of its size wide
  const svg = make('svg', { viewBox: `${-margin} ${-margin} ${n + margin} ${n + margin}`, role: 'img', 'aria-label': 'attention pattern: rows are queries, columns are keys' });
  const row = make('rect', { class: 'cross', width: n, height: 1, visibility: 'hidden' });
  const column = make('rect', { class: 'cross', width: 1, height: n, visibility: 'hidden' });
  const axis = data.tokens.map((token, i) => {
    const short = [...token].slice(0, 10).join('');
    const query = make('text', { x: -0.4, y: i + 0.5 + 0.3 * letter, 'text-anchor': 'end', 'font-size': letter }, short);
    const key = longest === 1 ? make('text', { x: i + 0.5, y: -0.3, 'text-anchor': 'middle', 'font-size': letter }, short)
      : make('text', { x: 0.4, y: 0, 'font-size': letter, transform: `translate(${i + 0.5} 0) rotate(-90)`, dy: '0.3em' }, short);
    if (labelled) svg.append(query, key);
    return { query, key };
  });
  svg.append(row, column);
  const plot = make('div', { class: 'plot' }, canvas, svg);
  const inside = 100 / (n + margin);
  Object.assign(canvas.style, { left: `${margin * inside}%`, top: `${margin * inside}%`, width: `${n * inside}%`, height: `${n * inside}%` });
  const legend = make('span', { class: 'legend' }, '0', legendBar(), '1 attention');
  const said = make('p', { class: 'said', role: 'status' });

  // The tokens, as text.
  const strip = make('div', { class: 'tokens', role: 'group', 'aria-label': 'tokens' });
  const tokens = data.tokens.map((label, index) => {
    const node = make('button', { type: 'button', class: 'token', 'data-position': index, 'aria-label': `position ${index}: ${label}` }, label);
    const look = () => point(index);
    node.addEventListener('pointerenter', look);
    node.addEventListener('focus', look);
    node.addEventListener('click', () => hold(index));
    strip.append(node);
    return node;
  });
  roving(tokens, 1);
  strip.addEventListener('pointerleave', () => leave());

  function point(index, other = null) {
    if (state.locked) state.other = index === state.token ? null : index;
    else Object.assign(state, { token: index, other });
    highlight();
  }
  function hold(index) {
    if (state.locked && state.token === index) state.locked = false;
    else Object.assign(state, { token: index, other: null, locked: true });
    highlight();
  }
  function leave() {
    if (state.locked) state.other = null;
    else Object.assign(state, { token: null, other: null });
    highlight();
  }
  function cell(event) {
    const box = canvas.getBoundingClientRect();
    const at = (value, start, length) => Math.floor(((value - start) / length) * n);
    const query = at(event.clientY, box.top, box.height);
    const key = at(event.clientX, box.left, box.width);
    return query >= 0 && query < n && key >= 0 && key < n ? { query, key } : null;
  }
  plot.addEventListener('pointermove', (event) => {
    const at = cell(event);
    if (!at) return leave();
    if (state.locked) state.other = state.asKey ? at.query : at.key;
    else Object.assign(state, state.asKey ? { token: at.key, other: at.query } : { token: at.query, other: at.key });
    highlight();
  });
  plot.addEventListener('pointerleave', leave);
  plot.addEventListener('click', (event) => {
    const at = cell(event);
    if (at) hold(state.asKey ? at.key : at.query);
  });
  root.addEventListener('keydown', (event) => {
    if (event.key !== 'Escape') return;
    state.locked = false;
    leave();
  });

  function sentence() {
    const { token, other, asKey } = state;
    const quoted = (i) => `${i} ‘${data.tokens[i]}’`;
    if (token === null) return 'Hover or focus a token, or a cell of the pattern. Click to hold it, Escape to let go.';
    const value = (i) => (asKey ? here(i, token) : here(token, i));
    if (other !== null) {
      const [query, key] = asKey ? [other, token] : [token, other];
      return key > query ? `Position ${quoted(query)} cannot see ${quoted(key)}: it comes later.` : `Position ${quoted(query)} attends to ${quoted(key)}: ${here(query, key).toFixed(2)}`;
    }
    const ranked = data.tokens.map((_, i) => i).filter((i) => value(i) > 0).sort((a, b) => value(b) - value(a)).slice(0, 4);
    const list = ranked.map((i) => `${quoted(i)} ${value(i).toFixed(2)}`).join(',  ');
    return asKey ? `Position ${quoted(token)} is attended by  ${list || 'no later token'}` : `Position ${quoted(token)} attends to  ${list}`;
  }

  function highlight() {
    const { token, other, asKey } = state;
    root.dataset.query = token ?? '';
    root.dataset.other = other ?? '';
    root.dataset.locked = state.locked;
    tokens.forEach((node, i) => {
      const future = token !== null && (asKey ? i < token : i > token);
      node.classList.toggle('query', i === token);
      node.classList.toggle('key', i === other);
      node.classList.toggle('future', future);
      node.setAttribute('aria-pressed', state.locked && i === token);
      paint(node, token === null || future ? null : asKey ? here(i, token) : here(token, i), true);
    });
    const [query, key] = asKey ? [other, token] : [token, other];
    row.setAttribute('visibility', query === null ? 'hidden' : 'visible');
    row.setAttribute('y', query ?? 0);
    column.setAttribute('visibility', key === null ? 'hidden' : 'visible');
    column.setAttribute('x', key ?? 0);
    axis.forEach((labels, i) => {
      labels.query.classList.toggle('on', i === query);
      labels.key.classList.toggle('on', i === key);
    });
    said.textContent = sentence();
  }

  function refresh() {
    const name = nameOf(state.layer, state.head);
    root.dataset.head = name;
    title.replaceChildren(name, make('span', {}, data.notes[name] ?? ''));
    drawPattern(canvas, state.layer, state.head);
    for (const { thumb, layer, head } of thumbs) {
      thumb.setAttribute('aria-pressed', layer === state.layer && head === state.head);
    }
    highlight();
  }
  function redraw() {
    for (const { canvas: small, layer, head } of thumbs) drawPattern(small, layer, head);
    refresh();
  }

  const mode = make('button', { type: 'button', class: 'mode' }, 'A token shows: what it attends to');
  mode.addEventListener('click', () => {
    Object.assign(state, { asKey: !state.asKey, other: null });
    mode.textContent = state.asKey ? 'A token shows: what attends to it' : 'A token shows: what it attends to';
    highlight();
  });
  const controls = make('div', { class: 'controls' });
  if (nSteps > 1) controls.append(stepChooser(data.steps, (step) => { state.step = step; redraw(); }));
  controls.append(mode, legend);
  root.classList.add('beside');
  const large = make('div', { class: 'large' }, title, ...(compact ? [plot] : [strip, said, plot]));
  root.append(controls, make('div', { class: 'bench' }, heads, large), ...(compact ? [strip, said] : []));
  const first = thumbs.find(({ layer, head }) => nameOf(layer, head) === data.first);
  if (first) Object.assign(state, { layer: first.layer, head: first.head });
  redraw();
}

document.querySelectorAll('[data-view="attention"]').forEach(attentionView);
