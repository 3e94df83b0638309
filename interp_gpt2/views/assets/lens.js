// The logit lens as a table: rows are layers, columns positions, each cell the top token there, coloured by one statistic.
function lensView(root) {
  const data = JSON.parse(root.querySelector('script').textContent);
  const nLayers = data.layers.length;
  const n = data.tokens.length;
  const most = (name) => Math.max(1e-9, ...data[name].flat(2).filter((value) => value !== null));
  const logRank = (rank) => Math.log1p(rank) / Math.log1p(data.d_vocab - 1 || 1);
  const statistics = {
    probability: { title: 'probability of the next token', share: (value) => value, ends: ['0', '1'] },
    rank: { title: 'rank of the next token', share: (value) => 1 - logRank(value), ends: [grouped(data.d_vocab - 1), '0 (best)'] },
    kl: { title: 'KL(final || lens)', share: (value, top) => value / top, ends: ['0', null], unit: ' nats' },
    entropy: { title: 'entropy', share: (value, top) => value / top, ends: ['0', null], unit: ' nats' },
  };
  const state = { step: data.steps.length - 1, statistic: 'probability', layer: nLayers - 1, position: Math.min(Math.max(0, n - 2), 12) };
  const tops = { kl: most('kl'), entropy: most('entropy') };

  const header = make('tr', {}, make('th', { scope: 'row' }, 'token'), ...data.tokens.map((label) => make('th', { scope: 'col' }, label)));
  const footer = make('tr', {}, make('th', { scope: 'row' }, 'next'), ...data.targets.map((label) => make('td', {}, label ?? '')));
  const cells = [];
  const body = make('tbody');
  for (let layer = nLayers - 1; layer >= 0; layer--) {
    const line = make('tr', {}, make('th', { scope: 'row' }, data.layers[layer]));
    for (let position = 0; position < n; position++) {
      const node = make('td', { 'data-layer': layer, 'data-position': position });
      const look = () => { Object.assign(state, { layer, position }); mark(); };
      node.addEventListener('pointerenter', look);
      node.addEventListener('focus', look);
      cells.push({ node, layer, position });
      line.append(node);
    }
    body.append(line);
  }
  roving(cells.map(({ node }) => node), n);
  const grid = make('div', { class: 'grid' }, make('table', {}, make('thead', {}, header), body, make('tfoot', {}, footer)));

  const bars = make('div', { class: 'tops' });
  const said = make('p', { class: 'said', role: 'status' });
  const detail = make('div', { class: 'detail' }, bars, said);
  const ends = [make('span'), make('span')];
  const legend = make('span', { class: 'legend' }, ends[0], legendBar(), ends[1]);

  function mark() {
    const { step, layer, position } = state;
    root.dataset.layer = layer;
    root.dataset.position = position;
    for (const { node, layer: l, position: p } of cells) node.classList.toggle('on', l === layer && p === position);
    [header, footer].forEach((line) => [...line.cells].forEach((node, i) => node.classList.toggle('at', i === position + 1)));
    const target = data.targets[position];
    bars.replaceChildren(...data.top[step][layer][position].flatMap((word, k) => {
      const probability = data.top_probability[step][layer][position][k];
      const bar = make('div', { class: 'bar' });
      bar.style.width = `${100 * probability}%`;
      return [make('span', {}, data.words[word]), bar, make('div', { class: 'value' }, quantity(probability, 3))];
    }));
    const at = (name) => data[name][step][layer][position];
    const parts = [`After position ${position} ‘${data.tokens[position]}’, read at ${data.layers[layer]}, step ${grouped(data.steps[step])}.`];
    if (target !== null) parts.push(`The next token ‘${target}’ has probability ${quantity(at('probability'), 3)}, rank ${grouped(at('rank'))}.`);
    parts.push(`KL(final || lens) ${quantity(at('kl'))} nats, entropy ${quantity(at('entropy'))} nats.`);
    said.replaceChildren(...parts.flatMap((part) => [part, make('br')]));
  }

  function refresh() {
    const { step, statistic } = state;
    root.dataset.step = data.steps[step];
    root.dataset.statistic = statistic;
    const { share, ends: [low, high], unit } = statistics[statistic];
    ends[0].textContent = low;
    ends[1].textContent = high ?? quantity(tops[statistic]) + unit;
    for (const { node, layer, position } of cells) {
      const word = data.words[data.top[step][layer][position][0]];
      const value = data[statistic][step][layer][position];
      node.textContent = word;
      node.classList.toggle('right', word === data.targets[position]);
      node.setAttribute('aria-label', `${data.layers[layer]}, position ${position}: ${word}, ${statistics[statistic].title} ${quantity(value)}`);
      paint(node, value === null ? null : share(value, tops[statistic]));
    }
    mark();
  }

  const choose = make('select', { 'aria-label': 'colour' }, ...Object.entries(statistics).map(([name, { title }]) => make('option', { value: name }, title)));
  choose.addEventListener('change', () => { state.statistic = choose.value; refresh(); });
  const controls = make('div', { class: 'controls' });
  if (data.steps.length > 1) controls.append(stepChooser(data.steps, (step) => { state.step = step; refresh(); }));
  controls.append(make('label', {}, 'colour', choose), legend);
  root.append(controls, grid, detail);
  refresh();
}

document.querySelectorAll('[data-view="lens"]').forEach(lensView);
