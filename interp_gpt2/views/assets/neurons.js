// Neuron pages need no script to be read: this turns the arrow keys into the links above, and sorts the index.
document.addEventListener('keydown', (event) => {
  const rel = { ArrowLeft: 'prev', ArrowRight: 'next' }[event.key];
  if (!rel || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest('input, select, .scroll')) return;
  document.querySelector(`.neuron nav a[rel="${rel}"]`)?.click();
});

for (const button of document.querySelectorAll('.neurons th button')) {
  button.addEventListener('click', () => {
    const [head, table] = [button.closest('th'), button.closest('table')];
    const down = head.getAttribute('aria-sort') !== 'descending';
    for (const other of head.parentNode.children) other.removeAttribute('aria-sort');
    head.setAttribute('aria-sort', down ? 'descending' : 'ascending');
    const value = (row) => Number(row.cells[head.cellIndex].dataset.value);
    const rows = [...table.tBodies[0].rows].sort((a, b) => (down ? value(b) - value(a) : value(a) - value(b)));
    table.tBodies[0].append(...rows);
  });
}
