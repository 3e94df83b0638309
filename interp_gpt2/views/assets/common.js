// Text reaches the page through textContent and setAttribute alone, never as HTML: labels and samples may hold anything.
const SVG = 'http://www.w3.org/2000/svg'; // a name, not an address: nothing is fetched from it

function make(name, attributes = {}, ...children) {
  const svg = ['svg', 'rect', 'line', 'text', 'g', 'circle'].includes(name);
  const node = svg ? document.createElementNS(SVG, name) : document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, value);
  node.append(...children);
  return node;
}

// matplotlib's viridis at 17 even steps; colours between are interpolated.
const VIRIDIS = ['440154', '48186a', '472d7b', '424086', '3b528b', '33638d', '2c728e', '26828e', '21918c', '1fa088', '28ae80',
  '3fbc73', '5ec962', '84d44b', 'addc30', 'd8e219', 'fde725'].map((hex) => [0, 2, 4].map((i) => parseInt(hex.slice(i, i + 2), 16)));

function viridis(share) {
  const at = Math.min(Math.max(share, 0), 1) * (VIRIDIS.length - 1);
  const low = Math.min(Math.floor(at), VIRIDIS.length - 2);
  return VIRIDIS[low].map((value, i) => Math.round(value + (at - low) * (VIRIDIS[low + 1][i] - value)));
}

// Viridis behind text. `fading` lets it fade out towards zero, so that text in which little happens looks like text.
function paint(node, share, fading = false) {
  const opacity = share === null ? 0 : fading ? Math.min(1, share * 2.5) : 1;
  const [r, g, b] = viridis(share ?? 0);
  node.style.backgroundColor = opacity < 0.02 ? '' : `rgb(${r} ${g} ${b} / ${opacity})`;
  node.style.color = opacity < 0.6 ? '' : 0.299 * r + 0.587 * g + 0.114 * b > 125 ? '#101010' : '#ffffff';
}

function legendBar() {
  const bar = make('canvas', { width: 64, height: 1 });
  const context = bar.getContext('2d');
  for (let i = 0; i < 64; i++) {
    context.fillStyle = `rgb(${viridis(i / 63).join(' ')})`;
    context.fillRect(i, 0, 1, 1);
  }
  return bar;
}

const grouped = (value) => value.toLocaleString('en-US', { maximumFractionDigits: 6 });

function quantity(value, digits = 2) {
  if (value === null || value === undefined) return '–';
  return value !== 0 && Math.abs(value) < 10 ** -digits ? value.toPrecision(2) : value.toFixed(digits);
}

function unpackBytes(base64) {
  const text = atob(base64);
  const bytes = new Uint8Array(text.length);
  for (let i = 0; i < text.length; i++) bytes[i] = text.charCodeAt(i);
  return bytes;
}

// The step that a page shows. Whoever changes it tells the others, and each goes to the nearest step that it has.
const followers = [];
const nearestIndex = (steps, step) => steps.reduce((best, other, i) => (Math.abs(other - step) < Math.abs(steps[best] - step) ? i : best), 0);

function goToStep(step, from = null) {
  for (const follow of followers) if (follow !== from) follow(step);
}

function stepChooser(steps, choose) {
  const range = make('input', { type: 'range', min: 0, max: steps.length - 1, step: 1, 'aria-label': 'step' });
  range.value = steps.length - 1;
  const shown = make('output', {}, `step ${grouped(steps[steps.length - 1])}`);
  const show = (index) => {
    range.value = index;
    shown.textContent = `step ${grouped(steps[index])}`;
    range.setAttribute('aria-valuetext', shown.textContent);
    choose(index);
  };
  const follow = (step) => {
    const index = nearestIndex(steps, step);
    if (index !== Number(range.value)) show(index);
  };
  followers.push(follow);
  range.addEventListener('input', () => {
    show(Number(range.value));
    goToStep(steps[range.value], follow);
  });
  return make('label', {}, range, shown);
}

// A button in a head of a table sorts by its column; rows without a value there come last.
function sortRows(table) {
  const head = table.querySelector('th[aria-sort]');
  if (!head) return;
  const down = head.getAttribute('aria-sort') === 'descending';
  const value = (row) => {
    const said = row.cells[head.cellIndex].dataset.value;
    return said === undefined || said === '' ? (down ? -Infinity : Infinity) : Number(said);
  };
  const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)) || 0);
  table.tBodies[0].append(...rows);
}

for (const button of document.querySelectorAll('.neurons th button, .sortable th button[data-sort]')) {
  button.addEventListener('click', () => {
    const head = button.closest('th');
    const down = head.getAttribute('aria-sort') !== 'descending';
    for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    sortRows(button.closest('table'));
  });
}

// Arrow keys move among `nodes`, of which only one can be reached by Tab. `columns` is the length of a row.
function roving(nodes, columns) {
  nodes.forEach((node, index) => {
    node.tabIndex = index ? -1 : 0;
    node.addEventListener('focus', () => nodes.forEach((other) => { other.tabIndex = other === node ? 0 : -1; }));
    node.addEventListener('keydown', (event) => {
      const move = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns }[event.key];
      const next = move === undefined ? undefined : nodes[index + move];
      if (!next) return;
      event.preventDefault();
      next.focus();
    });
  });
}

function save(name, type, text) {
  const link = make('a', { download: name, href: URL.createObjectURL(new Blob([text], { type })) });
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 1000);
}

function csvOf(table) {
  const quoted = (cell) => (/[",\n]/.test(cell) ? `"${cell.replaceAll('"', '""')}"` : cell);
  return [...table.rows].map((row) => [...row.cells].map((cell) => quoted(cell.textContent)).join(',')).join('\n') + '\n';
}

for (const button of document.querySelectorAll('button[data-csv]')) {
  button.addEventListener('click', () => save(`${button.dataset.csv}.csv`, 'text/csv', csvOf(button.closest('details').querySelector('table'))));
}

for (const button of document.querySelectorAll('button[data-theme-switch]')) {
  const root = document.documentElement;
  const dark = () => (root.dataset.theme ?? (matchMedia('(prefers-color-scheme: dark)').matches ? 'dark' : 'light')) === 'dark';
  const say = () => { button.textContent = dark() ? 'Light' : 'Dark'; };
  button.addEventListener('click', () => {
    root.dataset.theme = dark() ? 'light' : 'dark';
    say();
  });
  say();
}
