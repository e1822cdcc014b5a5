{{- define "vecdb.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-{{ .Chart.Name }}{{ end }}
{{- end }}

{{- define "vecdb.labels" -}}
app.kubernetes.io/name: vecdb
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "vecdb.about" -}}
{{ include "vecdb.labels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "vecdb.image" -}}
{{ .Values.image.repository }}:{{ .Values.image.tag | default .Chart.AppVersion }}
{{- end }}

{{/* Where the coordinators are reached by other nodes: "NAME=ADDRESS" of each for who founds, "ADDRESS" for who joins. */}}
{{- define "vecdb.founders" -}}
{{- $name := include "vecdb.name" . }}{{ $space := .Release.Namespace }}
{{- range $i := until (int .Values.coordinator.replicas) }}
{{- if $i }},{{ end }}{{ $name }}-coordinator-{{ $i }}={{ $name }}-coordinator-{{ $i }}.{{ $name }}-peers.{{ $space }}.svc:7702
{{- end }}
{{- end }}

{{- define "vecdb.seeds" -}}
{{- $name := include "vecdb.name" . }}{{ $space := .Release.Namespace }}
{{- range $i := until (int .Values.coordinator.replicas) }}
{{- if $i }},{{ end }}{{ $name }}-coordinator-{{ $i }}.{{ $name }}-peers.{{ $space }}.svc:7702
{{- end }}
{{- end }}

{{- define "vecdb.url" -}}
{{ ternary "grpcs" "grpc" (ne .Values.tls.existingSecret "") }}://{{ include "vecdb.name" . }}.{{ .Release.Namespace }}.svc:7700
{{- end }}

{{/* How a command in a pod comes in. */}}
{{- define "vecdb.client" -}}
- {name: VECDB_URL, value: {{ include "vecdb.url" . | quote }}}
- {name: VECDB_CLIENT__API_KEY_FILE, value: /secrets/admin/admin-key}
{{- if .Values.tls.existingSecret }}
- {name: VECDB_CLIENT__CA_FILE, value: /secrets/tls/ca.crt}
{{- else }}
- {name: VECDB_CLIENT__INSECURE, value: "true"}
{{- end }}
{{- end }}

{{- define "vecdb.clientMounts" -}}
- {name: tmp, mountPath: /tmp}
- {name: admin, mountPath: /secrets/admin, readOnly: true}
{{- if .Values.tls.existingSecret }}
- {name: tls, mountPath: /secrets/tls, readOnly: true}
{{- end }}
{{- end }}

{{- define "vecdb.clientVolumes" -}}
- name: tmp
  emptyDir: {sizeLimit: 1Gi}
- name: admin
  secret: {secretName: {{ .Values.auth.existingSecret }}, defaultMode: 0440}
{{- with .Values.tls.existingSecret }}
- name: tls
  secret: {secretName: {{ . }}, defaultMode: 0440}
{{- end }}
{{- end }}

{{- define "vecdb.security" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* A StatefulSet: of (root, role, values of the role, zone or ""). */}}
{{- define "vecdb.nodes" -}}
{{- $root := index . 0 }}{{ $role := index . 1 }}{{ $nodes := index . 2 }}{{ $zone := index . 3 }}
{{- $name := include "vecdb.name" $root }}
{{- $set := printf "%s-%s%s" $name $role (ternary (printf "-%s" $zone) "" (ne $zone "")) -}}
apiVersion: apps/v1
kind: StatefulSet
metadata:
  name: {{ $set }}
  namespace: {{ $root.Release.Namespace }}
  labels:
    {{- include "vecdb.about" $root | nindent 4 }}
    app.kubernetes.io/component: {{ $role }}
spec:
  replicas: {{ $nodes.replicas }}
  serviceName: {{ $name }}-peers
  podManagementPolicy: Parallel   # a cluster is founded when all its founders are up at the same time
  updateStrategy: {type: RollingUpdate}
  selector:
    matchLabels:
      {{- include "vecdb.labels" $root | nindent 6 }}
      app.kubernetes.io/component: {{ $role }}
      {{- with $zone }}
      vecdb/zone: {{ . | quote }}
      {{- end }}
  template:
    metadata:
      labels:
        {{- include "vecdb.labels" $root | nindent 8 }}
        app.kubernetes.io/component: {{ $role }}
        {{- with $zone }}
        vecdb/zone: {{ . | quote }}
        {{- end }}
      annotations:
        checksum/settings: {{ include (print $root.Template.BasePath "/configmap.yaml") $root | sha256sum }}
        prometheus.io/scrape: "true"
        prometheus.io/port: "7701"
        prometheus.io/path: /metrics
        {{- with $root.Values.podAnnotations }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
    spec:
      serviceAccountName: {{ $name }}
      automountServiceAccountToken: false
      enableServiceLinks: false
      terminationGracePeriodSeconds: {{ $root.Values.terminationGracePeriodSeconds }}
      {{- with $nodes.priorityClassName }}
      priorityClassName: {{ . }}
      {{- end }}
      {{- with $root.Values.image.pullSecrets }}
      imagePullSecrets: {{- toYaml . | nindent 8 }}
      {{- end }}
      securityContext:
        runAsNonRoot: true
        runAsUser: 10001
        runAsGroup: 10001
        fsGroup: 10001
        fsGroupChangePolicy: OnRootMismatch
        seccompProfile: {type: RuntimeDefault}
      {{- if or $zone $nodes.nodeSelector }}
      nodeSelector:
        {{- with $zone }}
        topology.kubernetes.io/zone: {{ . | quote }}
        {{- end }}
        {{- with $nodes.nodeSelector }}
        {{- toYaml . | nindent 8 }}
        {{- end }}
      {{- end }}
      {{- with $nodes.tolerations }}
      tolerations: {{- toYaml . | nindent 8 }}
      {{- end }}
      affinity:
        podAntiAffinity:
          {{- if eq $nodes.antiAffinity "required" }}
          requiredDuringSchedulingIgnoredDuringExecution:
            - topologyKey: kubernetes.io/hostname
              labelSelector:
                matchLabels: {{- include "vecdb.spread" (list $root $role) | nindent 18 }}
          {{- else }}
          preferredDuringSchedulingIgnoredDuringExecution:
            - weight: 100
              podAffinityTerm:
                topologyKey: kubernetes.io/hostname
                labelSelector:
                  matchLabels: {{- include "vecdb.spread" (list $root $role) | nindent 20 }}
          {{- end }}
      {{- if not $zone }}
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: topology.kubernetes.io/zone
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels: {{- include "vecdb.spread" (list $root $role) | nindent 14 }}
      {{- end }}
      {{- if eq $role "shard" }}
      initContainers:
        # Whoever joins needs a token, once: asked for with the admin key, kept beside the data until it is of no more use.
        - name: token
          image: {{ include "vecdb.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          command: [sh, -euc]
          args:
            - |
              until [ -s /data/join-token ]; do
                vecdb cluster token create --role shard --ttl 1d > /data/join-token.new && mv /data/join-token.new /data/join-token || sleep 5
              done
          env: {{- include "vecdb.client" $root | nindent 12 }}
          securityContext: {{- include "vecdb.security" $root | nindent 12 }}
          resources:
            requests: {cpu: 50m, memory: 128Mi}
            limits: {memory: 256Mi}
          volumeMounts:
            - {name: data, mountPath: /data}
            {{- include "vecdb.clientMounts" $root | nindent 12 }}
      {{- end }}
      containers:
        - name: vecdb
          image: {{ include "vecdb.image" $root }}
          imagePullPolicy: {{ $root.Values.image.pullPolicy }}
          args: [serve]
          envFrom:
            - configMapRef: {name: {{ $name }}}
          env:
            - name: POD_NAME
              valueFrom: {fieldRef: {fieldPath: metadata.name}}
            {{- include "vecdb.client" $root | nindent 12 }}
            - {name: VECDB_SERVER__NODE_ID, value: $(POD_NAME)}
            - {name: VECDB_SERVER__ADVERTISE, value: "$(POD_NAME).{{ $name }}-peers.{{ $root.Release.Namespace }}.svc:7700"}
            - {name: VECDB_CLUSTER__ROLE, value: {{ $role }}}
            {{- if eq $role "shard" }}
            - {name: VECDB_CLUSTER__ADVERTISE, value: "$(POD_NAME).{{ $name }}-peers.{{ $root.Release.Namespace }}.svc:7702"}
            - {name: VECDB_CLUSTER__JOIN, value: {{ include "vecdb.seeds" $root | quote }}}
            - {name: VECDB_CLUSTER__TOKEN_FILE, value: /data/join-token}
            {{- else }}
            - {name: VECDB_CLUSTER__NODES, value: {{ include "vecdb.founders" $root | quote }}}
            {{- end }}
            {{- with $zone }}
            - {name: VECDB_CLUSTER__ZONE, value: {{ . | quote }}}
            {{- end }}
          ports:
            - {name: grpc, containerPort: 7700}
            - {name: http, containerPort: 7701}
            - {name: peers, containerPort: 7702}
          # A node may verify every byte of large files before it serves: it is alive meanwhile.
          startupProbe:
            httpGet: {path: /healthz, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne $root.Values.tls.existingSecret "") }}}
            periodSeconds: 5
            failureThreshold: 240
          livenessProbe:
            httpGet: {path: /livez, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne $root.Values.tls.existingSecret "") }}}
            periodSeconds: 10
            timeoutSeconds: 5
            failureThreshold: 6
          readinessProbe:
            httpGet: {path: /readyz, port: http, scheme: {{ ternary "HTTPS" "HTTP" (ne $root.Values.tls.existingSecret "") }}}
            periodSeconds: 5
            timeoutSeconds: 3
          securityContext: {{- include "vecdb.security" $root | nindent 12 }}
          resources: {{- toYaml $nodes.resources | nindent 12 }}
          volumeMounts:
            - {name: data, mountPath: /data}
            {{- include "vecdb.clientMounts" $root | nindent 12 }}
            # Of the nodes' certificates a pod sees its own and the authority's.
            - {name: peers, mountPath: /secrets/peers/ca.pem, subPath: ca.pem, readOnly: true}
            - {name: peers, mountPath: /secrets/peers/node.pem, subPathExpr: $(POD_NAME).pem, readOnly: true}
            - {name: peers, mountPath: /secrets/peers/node.key, subPathExpr: $(POD_NAME).key, readOnly: true}
      volumes:
        {{- include "vecdb.clientVolumes" $root | nindent 8 }}
        - name: peers
          secret: {secretName: {{ $root.Values.peers.existingSecret }}, defaultMode: 0440}
  volumeClaimTemplates:
    - metadata:
        name: data
        labels:
          {{- include "vecdb.labels" $root | nindent 10 }}
          app.kubernetes.io/component: {{ $role }}
      spec:
        accessModes: [ReadWriteOnce]
        {{- with $nodes.storage.className }}
        storageClassName: {{ . }}
        {{- end }}
        resources:
          requests: {storage: {{ $nodes.storage.size }}}
{{- end }}

{{- define "vecdb.spread" -}}
{{- include "vecdb.labels" (index . 0) }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}
