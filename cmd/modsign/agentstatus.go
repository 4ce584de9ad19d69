package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/modsign/modsign/keygen/agent"
)

type jsonAgent struct {
	Type string `json:"message_type"` // agent
	agent.Status
}

func newAgentStatusCommand(u *ui) *cobra.Command {
	var objtree string
	cmd := &cobra.Command{
		Use:   "status [DIR]",
		Short: "Show the status of an object tree's key agent",
		Long: `Show the status of the key agent of the object tree DIR, by default the current
directory. Without an agent, status says why and exits with 1.`,
		Args: treeArg(&objtree),
		RunE: func(cmd *cobra.Command, _ []string) error {
			var client *agent.Client
			var status agent.Status
			err := interruptible(cmd.Context(), func() (err error) {
				if client, err = dialAgent(objtree); err == nil {
					status, err = client.Status()
				}
				return err
			})
			if err != nil {
				return err
			}
			defer client.Close()
			if u.JSON {
				u.Object(jsonAgent{"agent", status})
				return nil
			}
			showStatus(u, status, client.Certificate().Subject.CommonName)
			return nil
		},
	}
	addObjtree(cmd.Flags(), &objtree)
	addJSON(cmd.Flags(), u)
	return cmd
}

func showStatus(u *ui, s agent.Status, name string) {
	field(u, "pid", "%d", s.PID)
	field(u, "key", "%s", s.Algorithm)
	field(u, "certificate", "%q, SHA-256 %s", name, s.Certificate)
	if s.Kept {
		field(u, "kept", "elsewhere: the agent holds the key open")
	}
	field(u, "born", "%s", s.Born.Format(time.RFC3339))
	field(u, "ends", "%s at the latest", s.Ends.Format(time.RFC3339))
	allowed := "any number allowed"
	if s.InstallsAllowed > 0 {
		allowed = fmt.Sprintf("%d allowed", s.InstallsAllowed)
	}
	field(u, "installs", "%d, %s", s.Installs, allowed)
	field(u, "signatures", "%d", s.Signatures)
	field(u, "memory_locked", "%t", s.MemoryLocked)
	field(u, "memory_hidden", "%t", s.MemoryHidden)
	if !s.MemoryHidden {
		u.Say("warning: %s", memoryOpen)
	}
	if s.Warning != "" {
		u.Say("warning: %s", s.Warning)
	}
}
