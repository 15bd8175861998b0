package ext4

import "math"

// run is a piece of a file: blocks that lie together, or a hole.
type run struct {
	block uint64 // first block in the image; 0: a hole, which reads as zeros
	count uint64 // blocks
}

// mapping finds the blocks of one file. It keeps the node of the tree that it used last on each level.
type mapping struct {
	fs    *FS
	in    *Inode
	nodes [maxDepth]node
}

type node struct {
	block uint64
	data  []byte
}

const (
	extentMagic = 0xF30A
	maxDepth    = 5       // of a tree of extents (ext4_extents.h)
	maxExtent   = 1 << 15 // blocks in one extent; more: that many less this, and not written yet

	directBlocks = 12
)

// find returns the run that begins with a logical block. Its count is at least 1.
func (m *mapping) find(logical uint64) (run, error) {
	if logical > math.MaxUint32 {
		return run{}, corrupt("inode %d has more than 2^32 blocks", m.in.Number)
	}
	r, err := m.lookup(logical)
	if err != nil {
		return run{}, err
	}
	if r.block != 0 {
		if err := m.fs.checkBlocks(r.block, r.count); err != nil {
			return run{}, err
		}
	}
	return r, nil
}

func (m *mapping) lookup(logical uint64) (run, error) {
	if m.in.flags&flagExtents != 0 {
		return m.extent(logical)
	}
	return m.indirect(logical)
}

// node returns a block of the tree, from memory if it is the one used last on its level.
func (m *mapping) node(level int, block uint64) ([]byte, error) {
	if n := m.nodes[level]; n.block == block && n.data != nil {
		return n.data, nil
	}
	data, err := m.fs.readBlock(block)
	if err != nil {
		return nil, err
	}
	m.nodes[level] = node{block, data}
	return data, nil
}

// extent walks the tree of extents. Each level is one lower than the one above, so that the walk ends.
func (m *mapping) extent(logical uint64) (run, error) {
	data := m.in.block[:]
	end := uint64(math.MaxUint32) + 1 // where what this node covers ends
	want := -1
	for {
		entries, depth, err := extentNode(data)
		if err != nil || depth > maxDepth || want >= 0 && depth != want {
			return run{}, corrupt("inode %d has a bad tree of extents", m.in.Number)
		}
		// The last entry that begins at or before the block.
		lo, hi := 0, len(entries)/12
		for lo < hi {
			if mid := (lo + hi) / 2; uint64(le32(entries[12*mid:])) <= logical {
				lo = mid + 1
			} else {
				hi = mid
			}
		}
		if lo < len(entries)/12 {
			end = min(end, uint64(le32(entries[12*lo:])))
		}
		if end <= logical { // the order of the entries is not what it should be
			return run{}, corrupt("inode %d has a bad tree of extents", m.in.Number)
		}
		if lo == 0 {
			return run{count: end - logical}, nil
		}
		entry := entries[12*(lo-1):][:12]
		if depth == 0 {
			return leaf(entry, logical, end), nil
		}
		block := uint64(le32(entry[4:])) | uint64(le16(entry[8:]))<<32
		if data, err = m.node(depth-1, block); err != nil {
			return run{}, err
		}
		want = depth - 1
	}
}

// extentNode checks the header of a node and returns its entries of 12 bytes each, and its height over the leaves.
func extentNode(data []byte) (entries []byte, depth int, err error) {
	count := int(le16(data[2:]))
	if le16(data) != extentMagic || 12+12*count > len(data) {
		return nil, 0, corrupt("bad node of extents")
	}
	return data[12 : 12+12*count], int(le16(data[6:])), nil
}

// leaf returns what an extent says of a block at or behind its begin; end is where the next one begins.
func leaf(entry []byte, logical, end uint64) run {
	first, length := uint64(le32(entry)), uint64(le16(entry[4:]))
	unwritten := length > maxExtent
	if unwritten {
		length -= maxExtent
	}
	length = min(length, end-first)
	within := logical - first
	switch {
	case within >= length:
		return run{count: end - logical}
	case unwritten:
		return run{count: length - within}
	}
	start := uint64(le32(entry[8:])) | uint64(le16(entry[6:]))<<32
	if start == 0 {
		start = math.MaxUint64 // refused, and not taken for a hole
	}
	return run{block: start + within, count: length - within}
}

// indirect walks the block map of a file that was made without extents: twelve blocks, then trees of one to three levels.
func (m *mapping) indirect(logical uint64) (run, error) {
	perBlock := uint64(m.fs.super.blockSize) / 4 // positive
	pointers, index := m.in.block[:directBlocks*4], logical
	if logical >= directBlocks {
		index -= directBlocks
		level, covered := 0, perBlock // what one pointer of i_block covers
		for ; index >= covered; level++ {
			if level == 2 {
				return run{}, corrupt("inode %d is longer than its map of blocks", m.in.Number)
			}
			index -= covered
			covered *= perBlock
		}
		pointer := m.in.block[(directBlocks+level)*4:][:4]
		for ; level >= 0; level-- {
			block := uint64(le32(pointer))
			if block == 0 {
				return run{count: covered - index}, nil
			}
			var err error
			if pointers, err = m.node(level, block); err != nil {
				return run{}, err
			}
			covered /= perBlock
			pointer = pointers[index/covered*4:][:4]
			if level > 0 {
				index %= covered
			}
		}
	}
	r := run{block: uint64(le32(pointers[index*4:])), count: 1}
	for i := index + 1; i*4 < uint64(len(pointers)); i++ {
		next := uint64(le32(pointers[i*4:]))
		if r.block == 0 && next != 0 || r.block != 0 && next != r.block+r.count {
			break
		}
		r.count++
	}
	return r, nil
}
