package machines

import "math/rand/v2"

// Names for VMs whose user gave none: an adjective and an animal.
var (
	adjectives = []string{ //nolint:gochecknoglobals // a constant table
		"able", "amber", "bold", "brave", "brief", "bright", "brisk", "calm", "civil", "clear", "clever", "cosy", "crisp",
		"deft", "eager", "early", "fair", "fast", "fine", "fond", "fresh", "gentle", "glad", "grand", "happy", "hardy",
		"keen", "kind", "light", "lively", "lucky", "merry", "mild", "neat", "noble", "plain", "polite", "proud", "quick",
		"quiet", "ready", "sharp", "silent", "smart", "solid", "steady", "sunny", "swift", "tidy", "vivid", "warm", "wise",
	}
	animals = []string{ //nolint:gochecknoglobals // a constant table
		"badger", "bear", "beaver", "bison", "crane", "deer", "dove", "eagle", "egret", "elk", "falcon", "ferret", "finch",
		"fox", "gecko", "goose", "hare", "hawk", "heron", "horse", "ibis", "koala", "lark", "lemur", "lion", "lynx", "marten",
		"mole", "moose", "newt", "otter", "owl", "panda", "puffin", "quail", "raven", "robin", "seal", "shrew", "sloth",
		"stork", "swan", "tapir", "tern", "tiger", "toad", "trout", "viper", "vole", "whale", "wolf", "wren", "yak", "zebra",
	}
)

func inventName() string {
	return adjectives[rand.IntN(len(adjectives))] + "-" + animals[rand.IntN(len(animals))] // not a secret
}
