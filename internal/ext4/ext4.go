// Package ext4 reads ext4 filesystem images that nobody has mounted: trees of files with their owners, modes, times, links,
// devices and extended attributes. It writes nothing. Every number in an image is foreign and bounded before it is used.
package ext4
