// Draws the figures of nb_lib/explore.py (<div class="nbx">) in the colors of the page.
(() => {
  'use strict';
  const library = new URL('plotly.min.js', document.currentScript.src);
  const config = { responsive: true, displayModeBar: false };

  // plotly.js weighs 4.6 MB: loaded once, and only by a page whose reader comes near a figure.
  let loading;
  const plotly = () => loading ??= new Promise((resolve, reject) => {
    const script = document.createElement('script');
    script.src = library;
    script.onload = () => resolve(window.Plotly);
    script.onerror = () => reject(new Error(`${library} is missing`));
    document.head.append(script);
  });

  // The figure's layout, with the page's font and present colors in its template: what the figure sets itself wins.
  function themed(layout, element) {
    const { color: ink, borderTopColor: faint, backgroundColor: ground, fontFamily: family } = getComputedStyle(element);
    const base = layout.template?.layout ?? {};
    const axis = { gridcolor: faint, linecolor: faint, tickcolor: faint, zerolinecolor: faint };
    const paint = {
      ...base,
      annotationdefaults: { ...base.annotationdefaults, arrowcolor: ink },
      dragmode: matchMedia('(pointer: coarse)').matches ? false : 'zoom', // a finger on a figure scrolls the page
      font: { ...base.font, color: ink, family },
      hoverlabel: { ...base.hoverlabel, bgcolor: ground, bordercolor: faint, font: { color: ink, family } },
      xaxis: { ...base.xaxis, ...axis },
      yaxis: { ...base.yaxis, ...axis },
    };
    return { ...layout, template: { ...layout.template, layout: paint } };
  }

  async function draw(element) {
    const plot = element.querySelector('.nbx-plot');
    try {
      const Plotly = await plotly();
      const figure = JSON.parse(element.querySelector('script').textContent);
      await Plotly.react(plot, figure.data, themed(figure.layout, element), config);
      element.dataset.ready = '1';
    } catch (error) {
      console.error(error);
      plot.textContent = `This figure could not be drawn. ${plot.getAttribute('aria-label')}`;
    }
  }

  const figures = document.querySelectorAll('.nbx');
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) {
      if (!isIntersecting) continue;
      near.unobserve(target);
      draw(target);
    }
  }, { rootMargin: '600px' });
  figures.forEach((element) => near.observe(element));

  // The theme switch, and a system that turns dark at night, both end up in this attribute.
  new MutationObserver(() => figures.forEach((element) => element.dataset.ready && draw(element)))
    .observe(document.documentElement, { attributeFilter: ['data-theme'] });
})();
