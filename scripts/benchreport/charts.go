package main

import (
	"fmt"
	"image/color"
	"math"
	"path/filepath"
	"strconv"

	"gonum.org/v1/plot"
	"gonum.org/v1/plot/font"
	"gonum.org/v1/plot/plotter"
	"gonum.org/v1/plot/vg"
)

// Colours that people with any kind of colour vision can tell apart.
var (
	grey   = color.RGBA{0x99, 0x99, 0x99, 0xff}
	orange = color.RGBA{0xd5, 0x5e, 0x00, 0xff}
	blue   = color.RGBA{0x00, 0x72, 0xb2, 0xff}
)

// newChart has a font without serifs, as the text around the chart has.
func newChart() *plot.Plot {
	plot.DefaultFont = font.Font{Typeface: "Liberation", Variant: "Sans"}
	chart := plot.New()
	chart.Title.Padding = vg.Points(8)
	chart.Legend.Padding = vg.Points(4)
	return chart
}

// drawInstalls draws what make modules_install takes: a group of bars for each key.
func drawInstalls(all *results, dir string) error {
	rows := []struct{ name, label string }{
		{"install-p384", "ECDSA P-384"}, {"install-p384-strip", "P-384, stripped"},
		{"install-rsa4096", "RSA-4096"}, {"install-rsa4096-strip", "RSA-4096, stripped"},
	}
	tools := []struct {
		name, label string
		colour      color.Color
	}{
		{"unsigned", "Kbuild, without signing", grey}, {"stock", "Kbuild with sign-file", orange},
		{"hooked", "with modsign", blue},
	}
	chart := newChart()
	chart.Title.Text = fmt.Sprintf("make modules_install, %s modules", all.facts["modules"])
	chart.Y.Label.Text = "seconds"
	chart.Y.Min = 0
	chart.Legend.Top, chart.Legend.Left = true, true
	var labels []string
	heights := make([]plotter.Values, len(tools))
	for _, each := range rows {
		r := all.row(each.name)
		if r == nil {
			continue
		}
		labels = append(labels, each.label)
		for i, t := range tools {
			heights[i] = append(heights[i], r.tool(t.name).wall().median)
		}
	}
	if len(labels) == 0 {
		return nil
	}
	const width = 26
	for i, t := range tools {
		bars, err := plotter.NewBarChart(heights[i], vg.Points(width))
		if err != nil {
			return err
		}
		bars.Color, bars.LineStyle.Width = t.colour, 0
		bars.Offset = vg.Points(float64(i-1) * width)
		chart.Add(bars)
		chart.Legend.Add(t.label, bars)
		if err := addNumbers(chart, heights[i], bars.Offset); err != nil {
			return err
		}
	}
	chart.Y.Max *= 1.3 // room for the legend
	chart.NominalX(labels...)
	chart.X.Min, chart.X.Max = -0.6, float64(len(labels))-0.4 // room for labels in a wider font
	return chart.Save(vg.Points(560), vg.Points(300), filepath.Join(dir, "performance.svg"))
}

// addNumbers writes their heights above bars.
func addNumbers(chart *plot.Plot, heights plotter.Values, offset vg.Length) error {
	var at plotter.XYLabels
	for i, height := range heights {
		at.XYs = append(at.XYs, plotter.XY{X: float64(i), Y: height})
		at.Labels = append(at.Labels, fmt.Sprintf("%.1f", height))
	}
	labels, err := plotter.NewLabels(at)
	if err != nil {
		return err
	}
	for i := range labels.TextStyle {
		labels.TextStyle[i].XAlign = -0.5
		labels.TextStyle[i].Font.Size = vg.Points(9)
	}
	labels.Offset.X, labels.Offset.Y = offset, vg.Points(2)
	chart.Add(labels)
	return nil
}

// drawScale draws the time for a module and the peak of memory, by the number of modules.
func drawScale(all *results, dir string) error {
	r := all.row("scale")
	if r == nil {
		return nil
	}
	chart := newChart()
	chart.Title.Text = "modsign sign, ECDSA P-384: more modules"
	chart.X.Label.Text = "modules"
	chart.Y.Label.Text = "compared with the fewest modules"
	chart.X.Scale, chart.X.Tick.Marker = plot.LogScale{}, modulesTicks(r)
	chart.Y.Min = 0
	chart.Legend.Top, chart.Legend.Left = true, true
	first := r.tools[0]
	var time, peak plotter.XYs
	for _, t := range r.tools {
		n := float64(t.runs[0].modules)
		time = append(time, plotter.XY{X: n, Y: t.of(run.perModule).median / first.of(run.perModule).median})
		peak = append(peak, plotter.XY{X: n, Y: float64(t.peak()) / float64(first.peak())})
		chart.Y.Max = math.Max(chart.Y.Max, 1.2*math.Max(time[len(time)-1].Y, peak[len(peak)-1].Y))
	}
	for _, line := range []struct {
		label  string
		points plotter.XYs
		colour color.Color
	}{{"time for a module", time, blue}, {"peak memory", peak, orange}} {
		l, points, err := plotter.NewLinePoints(line.points)
		if err != nil {
			return err
		}
		l.Color, points.Color = line.colour, line.colour
		l.Width = vg.Points(1.5)
		chart.Add(l, points)
		chart.Legend.Add(line.label, l)
	}
	chart.X.Max = 1.35 * time[len(time)-1].X // room for the last number in a wider font
	return chart.Save(vg.Points(560), vg.Points(260), filepath.Join(dir, "scale.svg"))
}

// modulesTicks are ticks at the numbers of modules that were measured.
func modulesTicks(r *row) plot.ConstantTicks {
	var ticks plot.ConstantTicks
	for _, t := range r.tools {
		n := t.runs[0].modules
		ticks = append(ticks, plot.Tick{Value: float64(n), Label: strconv.Itoa(n)})
	}
	return ticks
}
