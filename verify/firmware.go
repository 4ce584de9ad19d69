package verify

// Firmware is what the firmware and shim tell a kernel when it boots.
type Firmware struct{}

// loadFirmware puts the certificates of the firmware where the kernel puts them.
func (k *Keyring) loadFirmware() {}

// settle moves the certificates to where a running kernel has them.
func (k *Keyring) settle() {}
