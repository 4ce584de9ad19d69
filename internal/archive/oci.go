package archive

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/modsign/modsign/internal/compress"
	"github.com/modsign/modsign/internal/module"
)

// The files of image layouts.
const (
	layoutFile   = "oci-layout"
	indexFile    = "index.json"
	manifestFile = "manifest.json"
	blobsDir     = "blobs"
)

const (
	maxJSON = 4 << 20 // bytes of a document, as registries have it
	// maxDocument is the size limit of a layer that is no file system, in bytes. The list of what is in an
	// image may have tens of millions.
	maxDocument = 64 << 20
	maxImages   = 64
	maxLayers   = 1024
	maxDepth    = 8 // of an index in an index
)

// An image is a container image: its layers, the lowest first.
type image struct {
	name   string
	layers []layer
}

// A layer is a tar archive in a layout.
type layer struct {
	name string
	open func() (*io.SectionReader, io.Closer, error)
	hash hash.Hash // of the file, if it is known
	want string

	mediaType string
}

// A descriptor refers to a blob (descriptor.md of the image specification).
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int64             `json:"size"`
	URLs        []string          `json:"urls"`
	Annotations map[string]string `json:"annotations"`
	Platform    *struct {
		Architecture string `json:"architecture"`
		OS           string `json:"os"`
		Variant      string `json:"variant"`
	} `json:"platform"`
}

// index is an image index (image-index.md) or manifest (manifest.md): which one it is, its
// members tell.
type index struct {
	Manifests []descriptor    `json:"manifests"`
	Layers    []descriptor    `json:"layers"`
	FSLayers  json.RawMessage `json:"fsLayers"` // of the first version of docker's manifests
}

// A layout gives access to the files of an image layout.
type layout struct {
	walk  *walk
	root  *os.Root
	tar   *io.SectionReader
	files map[string]*member
}

func (w *walk) images(a *Archive) error {
	l := &layout{walk: w, root: a.root}
	if a.root == nil {
		l.tar = io.NewSectionReader(a.r, 0, a.size)
		var err error
		if l.files, err = indexTar(l.tar, 1<<14, func(string) bool { return true }); err != nil {
			return err
		}
	}
	var images []image
	var err error
	if a.kind == OCI {
		images, err = l.oci()
	} else {
		images, err = l.docker()
	}
	if err == nil && a.kind == OCI && l.files[manifestFile] != nil {
		err = l.agree(images)
	}
	if err != nil {
		return err
	}
	if len(images) == 0 {
		return errors.New("there is no image in the layout")
	}
	for _, im := range images {
		if len(images) > 1 {
			w.image = im.name
		}
		if err := l.layers(im); err != nil {
			return fmt.Errorf("image %s: %w", im.name, err)
		}
	}
	return nil
}

// agree compares the images of index.json with those of manifest.json, which docker save writes both:
// some programs read the one, and some the other.
func (l *layout) agree(images []image) error {
	saved, err := l.docker()
	if err != nil {
		return err
	}
	for _, im := range saved {
		if !slices.ContainsFunc(images, func(other image) bool {
			return slices.EqualFunc(im.layers, other.layers, func(a, b layer) bool {
				return l.files[a.name] != nil && l.target(a.name) == l.target(b.name)
			})
		}) {
			return fmt.Errorf("image %s: manifest.json has other layers than index.json: programs read the one or the "+
				"other", im.name)
		}
	}
	return nil
}

// target returns where a name of a tar archive leads to.
func (l *layout) target(name string) string {
	for range 16 {
		if m := l.files[name]; m == nil || m.link == "" {
			break
		}
		name = l.files[name].link
	}
	return name
}

// open opens a file of the layout by its clean name.
func (l *layout) open(name string) (*io.SectionReader, io.Closer, error) {
	if l.root == nil {
		m := l.files[l.target(name)]
		switch {
		case m == nil:
			return nil, nil, fmt.Errorf("%s: not in the archive: %w", name, fs.ErrNotExist)
		case m.link != "":
			return nil, nil, fmt.Errorf("%s: links in the archive form a loop", name)
		case m.size > l.tar.Size()-m.at:
			return nil, nil, fmt.Errorf("%s: cut off: %w", name, io.ErrUnexpectedEOF)
		}
		return io.NewSectionReader(l.tar, m.at, m.size), io.NopCloser(nil), nil
	}
	f, err := l.root.OpenFile(name, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := f.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s: not a regular file", name)
	}
	if err != nil {
		f.Close()
		return nil, nil, err
	}
	return io.NewSectionReader(f, 0, info.Size()), f, nil
}

// document reads a small JSON file.
func (l *layout) document(name string, digest hash.Hash, want string, into any) error {
	section, closer, err := l.open(name)
	if err != nil {
		return err
	}
	defer closer.Close()
	if section.Size() > maxJSON {
		return fmt.Errorf("%s: %w: %d bytes; a document has at most %d", name, ErrLimit, section.Size(), maxJSON)
	}
	b, err := io.ReadAll(section)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	if digest != nil {
		digest.Write(b)
		if err := checkDigest(digest, want); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	if err := json.Unmarshal(b, into); err != nil { // which would quote a part of it
		return fmt.Errorf("%s: not the JSON of a container image", name)
	}
	return nil
}

var digestForm = regexp.MustCompile(`^(sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})$`)

// blob returns the name of a blob's file, and what checks its digest.
func (d *descriptor) blob() (name string, h hash.Hash, want string, err error) {
	if !digestForm.MatchString(d.Digest) {
		return "", nil, "", errors.New("digest of another form than sha256 or sha512")
	}
	algorithm, want, _ := strings.Cut(d.Digest, ":")
	h = sha256.New()
	if algorithm == "sha512" {
		h = sha512.New()
	}
	return path.Join(blobsDir, algorithm, want), h, want, nil
}

func checkDigest(h hash.Hash, want string) error {
	if got := hex.EncodeToString(h.Sum(nil)); got != want {
		return fmt.Errorf("content has the digest %s, not %s", got, want)
	}
	return nil
}

// oci returns the images of an OCI layout.
func (l *layout) oci() ([]image, error) {
	var top index
	if err := l.document(indexFile, nil, "", &top); err != nil {
		return nil, err
	}
	var images []image
	seen := make(map[string]bool)
	var visit func(d descriptor, depth int) error
	visit = func(d descriptor, depth int) error {
		if depth > maxDepth {
			return fmt.Errorf("%w: an index in an index, %d times", ErrLimit, depth)
		}
		if seen[d.Digest] {
			return nil
		}
		seen[d.Digest] = true
		if len(seen) > maxImages*4 {
			return fmt.Errorf("%w: more than %d documents", ErrLimit, maxImages*4)
		}
		name, h, want, err := d.blob()
		if err != nil {
			return err
		}
		var doc index
		err = l.document(name, h, want, &doc)
		if errors.Is(err, fs.ErrNotExist) && d.Platform != nil && d.Platform.OS == "unknown" {
			return nil // an attestation that was not copied along
		}
		if err != nil {
			return err
		}
		if doc.FSLayers != nil {
			return fmt.Errorf("%s: a manifest of docker's schema 1 is not read: copy the image with skopeo copy", name)
		}
		for _, m := range doc.Manifests {
			if err := visit(m, depth+1); err != nil {
				return err
			}
		}
		if len(doc.Layers) == 0 {
			return nil
		}
		im := image{name: imageName(d, want)}
		for _, layer := range doc.Layers {
			next, err := l.layer(layer)
			if err != nil {
				return fmt.Errorf("image %s: %w", im.name, err)
			}
			document, err := next.document()
			if err != nil {
				return fmt.Errorf("image %s: %w", im.name, err)
			}
			if !document {
				im.layers = append(im.layers, next)
			}
		}
		if len(im.layers) > 0 {
			images = append(images, im)
		}
		if len(images) > maxImages {
			return fmt.Errorf("%w: more than %d images", ErrLimit, maxImages)
		}
		return nil
	}
	for _, m := range top.Manifests {
		if err := visit(m, 1); err != nil {
			return nil, err
		}
	}
	return images, nil
}

// imageName names an image by its platform or tag, and by its digest if it has none.
func imageName(d descriptor, digest string) string {
	if p := d.Platform; p != nil && p.OS != "" {
		return strings.Trim(p.OS+"/"+p.Architecture+"/"+p.Variant, "/")
	}
	if tag := d.Annotations["org.opencontainers.image.ref.name"]; tag != "" {
		return tag
	}
	return digest[:12]
}

func (l *layout) layer(d descriptor) (layer, error) {
	name, h, want, err := d.blob()
	if err != nil {
		return layer{}, err
	}
	if strings.Contains(d.MediaType, "encrypted") {
		return layer{}, fmt.Errorf("layer %s is encrypted", d.Digest)
	}
	open := func() (*io.SectionReader, io.Closer, error) {
		section, closer, err := l.open(name)
		if err == nil && section.Size() != d.Size {
			closer.Close()
			err = &fs.PathError{Op: "read", Path: name, Err: fmt.Errorf("%d bytes instead of %d", section.Size(), d.Size)}
		}
		if err != nil && len(d.URLs) > 0 {
			err = fmt.Errorf("%w (the layer is to be fetched from elsewhere)", err)
		}
		return section, closer, err
	}
	return layer{name: name, open: open, hash: h, want: want, mediaType: d.MediaType}, nil
}

// document reports whether a layer is a JSON document, such as an attestation or a signature,
// which is no part of a file system. Its content decides, as the media type is a claim of those
// who made the image: whatever is no tar archive and no such document is an error.
func (l *layer) document() (bool, error) {
	section, closer, err := l.open()
	if err != nil {
		return false, err
	}
	defer closer.Close()
	head := make([]byte, 512)
	n, err := section.ReadAt(head, 0)
	if err != nil && err != io.EOF {
		return false, err
	}
	head = head[:n]
	switch {
	case isTar(head), compress.StreamFormat(head) != "", len(bytes.Trim(head, "\x00")) == 0:
		return false, nil // reading it tells the rest
	case bytes.HasPrefix(bytes.TrimLeft(head, " \t\r\n"), []byte("{")):
		if section.Size() > maxDocument {
			return false, fmt.Errorf("%s: %w: a JSON document of %d bytes", l.name, ErrLimit, section.Size())
		}
		b := make([]byte, section.Size())
		if _, err := section.ReadAt(b, 0); err != nil && err != io.EOF {
			return false, err
		}
		if !json.Valid(b) {
			return false, fmt.Errorf("%s: a layer that is neither a tar archive nor, to its end, a JSON document", l.name)
		}
		return true, nil
	case kindOf(head) == Squashfs:
		return false, fmt.Errorf("%s: a layer that is a squashfs image is not read", l.name)
	}
	return false, fmt.Errorf("%s: a layer of the media type %q that is no tar archive, compressed or not", l.name,
		l.mediaType)
}

// docker returns the images of docker save's layout.
func (l *layout) docker() ([]image, error) {
	var manifests []struct {
		RepoTags []string
		Layers   []string
	}
	if err := l.document(manifestFile, nil, "", &manifests); err != nil {
		return nil, err
	}
	if len(manifests) > maxImages {
		return nil, fmt.Errorf("%w: more than %d images", ErrLimit, maxImages)
	}
	var images []image
	for i, m := range manifests {
		im := image{name: fmt.Sprint(i + 1)}
		if len(m.RepoTags) > 0 {
			im.name = m.RepoTags[0]
		}
		for _, name := range m.Layers {
			name := cleanName(name)
			open := func() (*io.SectionReader, io.Closer, error) { return l.open(name) }
			im.layers = append(im.layers, layer{name: name, open: open})
		}
		images = append(images, im)
	}
	return images, nil
}

// layers passes on the files of an image, the highest layer first.
func (l *layout) layers(im image) error {
	if len(im.layers) > maxLayers {
		return fmt.Errorf("%w: more than %d layers", ErrLimit, maxLayers)
	}
	covers := newCover(l.walk)
	for i := len(im.layers) - 1; i >= 0; i-- {
		l.walk.layer = i
		if err := l.readLayer(im.layers[i], covers, i == 0); err != nil {
			return fmt.Errorf("%s: %w", im.layers[i].name, err)
		}
	}
	l.walk.kept, l.walk.layer = l.walk.kept-covers.kept, 0
	return nil
}

func (l *layout) readLayer(layer layer, covers *cover, lowest bool) error {
	section, closer, err := layer.open()
	if err != nil {
		return err
	}
	defer closer.Close()
	if layer.hash != nil {
		h := layer.hash
		h.Reset()
		whole := io.NewSectionReader(section, 0, section.Size())
		if _, err := io.Copy(h, &stream{walk: l.walk, section: whole, plain: true}); err != nil {
			return err
		}
		if err := checkDigest(h, layer.want); err != nil {
			return err
		}
	}
	s, err := l.walk.unpacked(section)
	if err != nil {
		return err
	}
	defer s.close()
	err = l.walk.tarStream(s, layer.hash != nil, func(f *File) error {
		name := cleanName(f.Name)
		if base := path.Base(name); strings.HasPrefix(base, whiteout) {
			return covers.whiteout(path.Dir(name), base)
		}
		hidden := covers.hides(name)
		if err := covers.through(name, f.Mode, hidden); err != nil {
			return err
		}
		if l.walk.hidden && f.Mode.IsRegular() {
			wanted, err := covers.link(name, f.Link)
			if err != nil {
				return err
			}
			f.hidden = hidden && wanted
		}
		switch {
		case f.hidden:
			return l.walk.emit(f)
		case hidden:
			return l.walk.admit(f.Name, f.Link)
		}
		if !lowest {
			if err := covers.add(name, f.Mode.IsDir()); err != nil {
				return err
			}
		}
		return l.walk.emit(f)
	})
	covers.next()
	return err
}

// whiteout is the beginning of the name of a file that takes away what lower layers have
// (layer.md of the image specification).
const (
	whiteout = ".wh."
	opaque   = ".wh..wh..opq"
)

// A cover is what the layers so far, the highest first, hide in those below. Names are
// kept as hashes.
type cover struct {
	walk        *walk
	above, here map[key]covered // of the layers above; of this layer
	// linked are files of the layers below that hard links of the layers so far lead to, in
	// the layers above or here.
	linked, linkedHere map[key]struct{}
	// written are directories through which the layers so far have written modules that layers
	// above them hide, and dirs those that this layer has as such.
	written, writtenHere, dirs map[key]struct{}
	// passed are directories through which the layers so far have written any file, when the image is
	// read for files of any name.
	passed, passedHere map[key]struct{}
	// linksHere are the symbolic links of this layer so far, and those of them that are hidden.
	linksHere, hiddenLinks map[key]struct{}
	kept                   int64
}

type key [16]byte

type covered uint8

const (
	itself covered = 1 << iota // the name itself is hidden
	below                      // all below it is hidden
)

func newCover(w *walk) *cover {
	return &cover{walk: w, above: make(map[key]covered), here: make(map[key]covered),
		linked: make(map[key]struct{}), linkedHere: make(map[key]struct{}),
		linksHere: make(map[key]struct{}), hiddenLinks: make(map[key]struct{}),
		passed: make(map[key]struct{}), passedHere: make(map[key]struct{}),
		written: make(map[key]struct{}), writtenHere: make(map[key]struct{}), dirs: make(map[key]struct{})}
}

func keyOf(name string) key {
	sum := sha256.Sum256([]byte(name))
	return key(sum[:])
}

func (c *cover) put(name string, what covered) error {
	k := keyOf(name)
	if _, ok := c.here[k]; !ok {
		c.kept += keptEntry
		if err := c.walk.keep(""); err != nil {
			return err
		}
	}
	c.here[k] |= what
	return nil
}

// link notes a regular file of this layer, which is a hard link if there is a target. It reports
// whether a hard link of a layer above leads to the file.
func (c *cover) link(name, target string) (bool, error) {
	_, wanted := c.linked[keyOf(name)]
	if target == "" {
		return wanted, nil
	}
	return wanted, c.insert(c.linkedHere, keyOf(cleanName(target)))
}

func (c *cover) insert(set map[key]struct{}, k key) error {
	if _, ok := set[k]; ok {
		return nil
	}
	c.kept += keptEntry
	set[k] = struct{}{}
	return c.walk.keep("")
}

// through refuses a layer whose symbolic link is in the name of a module that a layer above has, and
// that is hidden: programs that unpack layers write that module where the link leads, and it stays.
func (c *cover) through(name string, mode fs.FileMode, hidden bool) error {
	at := keyOf(name)
	switch {
	case mode.IsDir():
		delete(c.linksHere, at)
		delete(c.hiddenLinks, at)
		return c.insert(c.dirs, at) // which is no link then, as it replaces one
	case mode.Type() == fs.ModeSymlink:
		_, ok := c.written[at]
		if !ok && hidden { // else a link in the image leads to where the file is
			_, ok = c.passed[at]
		}
		if ok {
			return throughLink(name)
		}
		if hidden {
			if err := c.insert(c.hiddenLinks, at); err != nil {
				return err
			}
		}
		if err := c.insert(c.linksHere, at); err != nil {
			return err
		}
	}
	// A file of another name matters if links lead to such files, which is why they are read again. Links
	// lead on to links.
	set, links, every := c.writtenHere, c.linksHere, c.walk.hidden && mode.IsRegular() || mode.Type() == fs.ModeSymlink
	switch {
	case !hidden && every:
		set, links = c.passedHere, c.hiddenLinks
	case !hidden, !every && !module.IsName(path.Base(name)):
		return nil
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		k := keyOf(dir)
		if _, ok := links[k]; ok {
			return throughLink(dir)
		}
		if _, ok := c.dirs[k]; !ok {
			if err := c.insert(set, k); err != nil {
				return err
			}
		}
	}
	return nil
}

func throughLink(name string) error {
	return fmt.Errorf("%s is a symbolic link, and a layer writes a file through it that is hidden there: "+
		"unpack the image (umoci unpack), and give modsign the directory", name)
}

// add covers what has the name of a file in this layer. A directory is joined with one below.
func (c *cover) add(name string, dir bool) error {
	if dir {
		return c.put(name, itself)
	}
	return c.put(name, itself|below)
}

// whiteout covers what a file of that name in a directory takes away.
func (c *cover) whiteout(dir, base string) error {
	if err := c.walk.admit(base, ""); err != nil {
		return err
	}
	switch {
	case base == opaque:
		return c.put(dir, below)
	case strings.HasPrefix(base, whiteout+whiteout):
		return nil // a file of the storage driver
	}
	return c.put(path.Join(dir, strings.TrimPrefix(base, whiteout)), itself|below)
}

// hides reports whether a layer above hides a name of this layer.
func (c *cover) hides(name string) bool {
	if len(c.above) == 0 {
		return false
	}
	if c.above[keyOf(name)]&itself != 0 {
		return true
	}
	for dir := name; dir != "." && dir != "/" && dir != ""; {
		dir = path.Dir(dir)
		if c.above[keyOf(dir)]&below != 0 {
			return true
		}
	}
	return false
}

// next goes to the layer below.
func (c *cover) next() {
	for k, what := range c.here {
		c.above[k] |= what
	}
	maps.Copy(c.linked, c.linkedHere)
	maps.Copy(c.written, c.writtenHere)
	maps.Copy(c.passed, c.passedHere)
	forgotten := keptEntry * int64(len(c.linksHere)+len(c.hiddenLinks))
	c.kept -= forgotten
	c.walk.kept -= forgotten
	clear(c.passedHere)
	clear(c.linksHere)
	clear(c.hiddenLinks)
	clear(c.writtenHere)
	clear(c.dirs)
	clear(c.here)
	clear(c.linkedHere)
}
