/* Formulas: what arithmatex marked in pages, and dollar signs in the text cells of tutorials. */
document.addEventListener("DOMContentLoaded", function () {
  const delimiters = [
    { left: "$$", right: "$$", display: true },
    { left: "\\[", right: "\\]", display: true },
    { left: "\\(", right: "\\)", display: false },
  ];
  document.querySelectorAll(".arithmatex").forEach(function (one) {
    renderMathInElement(one, { delimiters: delimiters, throwOnError: true });
  });
  document.querySelectorAll(".jp-MarkdownOutput").forEach(function (one) {
    renderMathInElement(one, {
      delimiters: delimiters.concat([{ left: "$", right: "$", display: false }]),
      throwOnError: true,
    });
  });
});
