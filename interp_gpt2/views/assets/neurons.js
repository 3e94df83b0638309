// Neuron pages need no script to be read: this turns the arrow keys into the links above.
document.addEventListener('keydown', (event) => {
  const rel = { ArrowLeft: 'prev', ArrowRight: 'next' }[event.key];
  if (!rel || event.altKey || event.ctrlKey || event.metaKey || event.shiftKey) return;
  if (event.target.closest('input, select, .scroll')) return;
  document.querySelector(`.neuron nav a[rel="${rel}"]`)?.click();
});
